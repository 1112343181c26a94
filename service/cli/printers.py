"""The forms in which commands print the results of images: tables, lines, CSV, JSON, COCO."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import quote

import msgspec
import numpy as np

from convmlp_client.errors import ClientError
from convmlp_client.results import Analysis, Classification, Detections, Embedding, Result, Segmentation
from convmlp_client.results import Task as ClientTask
from model.errors import ConvMLPError
from model.types import Size
from service.cli.backends import NoAnswer
from service.cli.console import (
    number_column,
    print_error,
    print_line,
    print_output,
    print_table,
    printable,
    text_column,
)
from service.errors import error_from_code
from service.frontend.api.rest.schemas import Answer, encode_analysis, encode_analysis_answer, encode_error
from service.frontend.http.problems import problem_of

Outcome = Result | Analysis | ConvMLPError

MAX_NAME_WIDTH = 60
"""Of the column of names, where each image has a line; a longer name moves its line to the right."""


class Form(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON_LINES = "jsonl"
    COCO = "coco"


class Printer(Protocol):
    def add(self, name: str, outcome: Outcome) -> bool:
        """Take the outcome of the next image, whose error is printed already. Returns whether it is complete."""
        ...

    def end(self) -> None:
        """Print what was not yet printed. Raises NoAnswer where the results do not fit into one document."""
        ...


def open_printer(form: Form | None, task: ClientTask, names: Sequence[str]) -> Printer:
    """`form` None is the document of `--json`. One image has a table, several have a line each."""
    match form:
        case None:
            return JsonPrinter(task)
        case Form.CSV:
            return CsvPrinter(task)
        case Form.JSON_LINES:
            return JsonLinesPrinter(task)
        case Form.COCO:
            return CocoPrinter()
        case Form.TABLE if len(names) == 1:
            return TablePrinter()
        case Form.TABLE:
            return LinePrinter(min(MAX_NAME_WIDTH, max(map(len, names), default=0)))


class TablePrinter:
    """A table for each result, under a line with the image's name, its size and the model."""

    def add(self, name: str, outcome: Outcome) -> bool:
        if isinstance(outcome, ConvMLPError):
            return False
        for answer in _answers(outcome).values():
            print_result(name, answer)
        return _print_errors(name, outcome)

    def end(self) -> None: ...


class LinePrinter:
    """A line for each image: its name, in a column of `width` characters, and a summary of the result."""

    def __init__(self, width: int) -> None:
        self._width = width

    def add(self, name: str, outcome: Outcome) -> bool:
        if isinstance(outcome, ConvMLPError):
            return False
        text = "; ".join(f"{of}: {summary(one)}" if of else summary(one) for of, one in _answers(outcome).items())
        print_line(f"{printable(name):<{self._width}}  {printable(text)}".rstrip())
        return _print_errors(name, outcome)

    def end(self) -> None: ...


CRLF = "\r\n"
"""What ends a row, and so is quoted within one. Rows are printed as other lines are."""

SIDES = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = {
    ClientTask.CLASSIFY: ("score",),
    ClientTask.DETECT: ("score", *SIDES),
    ClientTask.SEGMENT: ("area", "confidence"),
    ClientTask.ANALYZE: ("score", *SIDES, "area", "confidence"),
}
"""Of CSV, behind those of all tasks."""


class CsvPrinter:
    """RFC 4180: a header, and a row for each label, detection or segment of each image."""

    def __init__(self, task: ClientTask) -> None:
        self._columns = ("file", "width", "height", "task", "model", "label", "index", *COLUMNS[task])
        self._print(self._columns)

    def add(self, name: str, outcome: Outcome) -> bool:
        if isinstance(outcome, ConvMLPError):
            return False
        for answer in _answers(outcome).values():
            head = {"file": _text(name), "width": answer.image.width, "height": answer.image.height}
            head |= {"task": answer.meta.task.value, "model": answer.meta.model}
            for item in _items(answer):
                row = head | item
                self._print([row.get(column, "") for column in self._columns])
        return _print_errors(name, outcome)

    def end(self) -> None: ...

    def _print(self, row: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator=CRLF).writerow(row)
        text = line.getvalue().removesuffix(CRLF)
        print_line(printable(text) if sys.stdout.isatty() else text)


class JsonLinesPrinter:
    """A line of JSON for each image: `file`, `model`, `task` and `result`, as `convmlp watch` prints, or `error`.

    Of several tasks: `models` by the name of the answer.
    """

    def __init__(self, task: ClientTask) -> None:
        self._task = task

    def add(self, name: str, outcome: Outcome) -> bool:
        head: dict[str, object] = {"file": _text(name)}
        complete = True
        if isinstance(outcome, ConvMLPError):
            problem = encode_error(problem_of(outcome, quote(name, errors="replace")))
            self._print(head | msgspec.json.decode(problem, type=dict[str, msgspec.Raw]))
            return False
        if isinstance(outcome, Analysis):
            encoded, complete = _encode_analysis(name, outcome)
            line = {"models": dict(outcome.models), "task": self._task.value, "result": msgspec.Raw(encoded)}
        else:
            line = {"model": outcome.meta.model, "task": self._task.value, "result": outcome.to_dict()}
        self._print(head | line)
        return complete

    def end(self) -> None: ...

    def _print(self, line: Mapping[str, object]) -> None:
        print_line(msgspec.json.encode(line).decode())


class JsonPrinter:
    """The REST answer for all images, if any succeeded."""

    def __init__(self, task: ClientTask) -> None:
        self._task = task
        self._results: list[msgspec.Raw] = []
        self._models: set[tuple[tuple[str, str], ...]] = set()

    def add(self, name: str, outcome: Outcome) -> bool:
        complete = True
        if isinstance(outcome, ConvMLPError):
            encoded, complete = encode_error(problem_of(outcome, quote(name, errors="replace"))), False
        elif isinstance(outcome, Analysis):
            self._models.add(tuple(outcome.models.items()))
            encoded, complete = _encode_analysis(name, outcome)
        else:
            self._models.add(((self._task, outcome.meta.model),))
            encoded = msgspec.json.encode(outcome.to_dict())
        self._results.append(msgspec.Raw(encoded))
        return complete

    def end(self) -> None:
        """Raises NoAnswer: different models answered, and the answer names only one."""
        if len(self._models) > 1:
            names = ", ".join(sorted({model for of_image in self._models for _, model in of_image}))
            raise NoAnswer(f"the service changed its model meanwhile ({names}); name one with --model")
        if not self._models:
            return
        answered = dict(self._models.pop())
        if self._task is ClientTask.ANALYZE:
            print_output(encode_analysis_answer(answered, self._results))
        else:
            print_output(msgspec.json.encode(Answer(answered[self._task], self._task, self._results)))


class CocoPrinter:
    """COCO's data set format (cocodataset.org, "Data format"), as annotation tools import it: `images`, `categories`,
    and `annotations` with boxes or run lengths, and with scores.

    An image's id is its number, and a category's id the class's index in the model. The categories are those found.
    """

    def __init__(self) -> None:
        self._images: list[dict[str, object]] = []
        self._annotations: list[dict[str, object]] = []
        self._labels: dict[int, str] = {}

    def add(self, name: str, outcome: Outcome) -> bool:
        if not isinstance(outcome, Detections | Segmentation):
            return False
        from service.batch.coco import annotation

        number, row = len(self._images) + 1, outcome.to_dict()
        self._images.append({"id": number, "file_name": _text(name), **row["image"]})
        for item in (*row.get("detections", ()), *row.get("segments", ())):
            self._labels[item["index"]] = item["label"]
            ids = {"id": len(self._annotations) + 1, "image_id": number}
            self._annotations.append(ids | annotation(item, row["image"]))
        return True

    def end(self) -> None:
        if self._images:
            categories = [{"id": index, "name": label} for index, label in sorted(self._labels.items())]
            document = {"images": self._images, "annotations": self._annotations, "categories": categories}
            print_output(msgspec.json.encode(document))


def summary(result: Result) -> str:
    """A result in a part of a line; `-` where nothing was found."""
    match result:
        case Embedding(vector=vector):
            return f"{len(vector)} numbers"
        case Classification(labels=labels):
            parts = [f"{label.label} {label.score:.2f}" for label in labels]
        case Detections(detections=detections):
            parts = [f"{one.label} {one.score:.2f}" for one in detections]
        case Segmentation(segments=segments, image=size):
            parts = [f"{one.label} {100 * one.area / (size.width * size.height):.1f} %" for one in segments]
    return ", ".join(parts) or "-"


def print_result(name: str, result: Result) -> None:
    """One image's table, under a line with its name, its size and the model."""
    width, height = result.image.width, result.image.height
    match result:
        case Embedding(vector=vector):
            headers = ["dimension", "length"]
            rows = [[str(len(vector)), f"{np.linalg.norm(vector):.4f}"]]
        case Classification(labels=labels):
            headers = ["label", "score"]
            rows = [[one.label, f"{one.score:.4f}"] for one in labels]
        case Detections(detections=detections):
            headers = ["label", "score", *SIDES]
            rows = [
                [one.label, f"{one.score:.4f}", *(f"{getattr(one.box, side):.1f}" for side in SIDES)]
                for one in detections
            ]
        case Segmentation(segments=segments):
            headers = ["label", "area px", "area %", "confidence"]
            rows = [
                [one.label, str(one.area), f"{100 * one.area / (width * height):.1f}", f"{one.confidence:.4f}"]
                for one in segments
            ]
    columns = [text_column(header) if header == "label" else number_column(header) for header in headers]
    print_table(columns, rows, title=f"{name}  {width} x {height}  {result.meta.model}")


def _items(result: Result) -> Iterator[dict[str, Any]]:
    """What was found, by the names of CSV's columns; scores as the REST API rounds them."""
    match result:
        case Classification(labels=labels):
            yield from ({"label": one.label, "index": one.index, "score": one.score} for one in labels)
        case Detections(detections=detections):
            for one in detections:
                sides = {side: getattr(one.box, side) for side in SIDES}
                yield {"label": one.label, "index": one.index, "score": one.score, **sides}
        case Segmentation(segments=segments):
            for segment in segments:
                numbers = {"area": segment.area, "confidence": segment.confidence}
                yield {"label": segment.label, "index": segment.index, **numbers}
        case Embedding():
            raise TypeError("vectors are written into files")


def _answers(outcome: Result | Analysis) -> dict[str, Result]:
    """The results, by the names of an analysis's answers; a single result has none."""
    if not isinstance(outcome, Analysis):
        return {"": outcome}
    return {of: answer for of, answer in outcome.answers.items() if not isinstance(answer, ClientError)}


def _print_errors(name: str, outcome: Result | Analysis) -> bool:
    """Print the errors of an analysis's answers. Returns whether there are none."""
    answers = outcome.answers if isinstance(outcome, Analysis) else {}
    errors = {of: answer for of, answer in answers.items() if isinstance(answer, ClientError)}
    for of, error in errors.items():
        print_error(f"{name}: {of}: {error.detail}")
    return not errors


def _encode_analysis(name: str, analysis: Analysis) -> tuple[bytes, bool]:
    """The place of an image in `results`, and whether it has all answers; errors are printed as well."""
    answers: dict[str, bytes] = {}
    for of, answer in analysis.answers.items():
        if isinstance(answer, ClientError):
            error = error_from_code(answer.code, answer.detail, answer.retry_after_s)
            answers[of] = encode_error(problem_of(error, quote(f"{name}#{of}", errors="replace")))
        else:
            answers[of] = msgspec.json.encode(answer.to_dict())
    size = Size(analysis.image.height, analysis.image.width)
    return encode_analysis(size, answers), _print_errors(name, analysis)


def _text(name: str) -> str:
    """A file's name as valid text."""
    return name.encode("utf-8", "replace").decode()
