"""Predicts every image of a command and prints the results: as tables, as JSON, or drawn into files.

An error of one image affects no other image. An error that every image would meet, such as a service that is not
there, ends the command: it is printed once, and results that came before are still printed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
import typer

from convmlp_client.errors import ClientError
from convmlp_client.results import Analysis, Classification, Detections, Embedding, Result, Segmentation
from convmlp_client.results import Task as ClientTask
from model.decode import DecodeLimits, decode
from model.errors import BundleInvalid, ConvMLPError
from model.types import Image, Size
from service.cli.backends import AnalysisBackend, Backend, NoAnswer
from service.cli.console import image_progress, number_column, print_error, print_table, printable, text_column
from service.cli.inputs import FORMATS, MAX_READ_BYTES, ImageFile
from service.errors import BadParameter, Forbidden, ModelNotFound, Unauthenticated, Unavailable, error_from_code
from service.frontend.api.rest.schemas import Answer, encode_analysis, encode_analysis_answer, encode_error
from service.frontend.core.overlay import PictureFormat, encode_label_map, encode_picture, scaled_down
from service.frontend.core.parameters import View
from service.frontend.http.problems import problem_of

FATAL = (NoAnswer, Unavailable, ModelNotFound, BadParameter, Unauthenticated, Forbidden, BundleInvalid)
"""Errors that every other image would meet as well."""

T = TypeVar("T")


async def print_tables(backend: Backend | AnalysisBackend, images: Sequence[ImageFile]) -> bool:
    """Print a table for each image. Returns whether all succeeded."""
    complete = True
    async for image, outcome in predict_each(backend.predict, images, backend.concurrency, printing=True):
        if isinstance(outcome, ConvMLPError):
            complete = False
        elif isinstance(outcome, Analysis):
            complete = print_analysis(image.name, outcome) and complete
        else:
            print_result(image.name, outcome)
    return complete


def print_analysis(name: str, analysis: Analysis) -> bool:
    """A table for each answer; errors go to stderr. Returns whether there are none."""
    for answer in analysis.answers.values():
        if not isinstance(answer, ClientError):
            print_result(name, answer)
    errors = {of: answer for of, answer in analysis.answers.items() if isinstance(answer, ClientError)}
    for of, error in errors.items():
        print_error(f"{name}: {of}: {error.detail}")
    return not errors


def print_result(name: str, result: Result) -> None:
    """One image's table, under a line with its name, its size and the model."""
    width, height = result.image.width, result.image.height
    match result:
        case Embedding(vector=vector):
            columns = [number_column("dimension"), number_column("length")]
            rows = [[str(len(vector)), f"{np.linalg.norm(vector):.4f}"]]
        case Classification(labels=labels):
            columns = [text_column("label"), number_column("score")]
            rows = [[label.label, f"{label.score:.4f}"] for label in labels]
        case Detections(detections=detections):
            columns = [text_column("label"), *map(number_column, ("score", "xmin", "ymin", "xmax", "ymax"))]
            rows = [
                [
                    detection.label,
                    f"{detection.score:.4f}",
                    *(f"{side:.1f}" for side in (box.xmin, box.ymin, box.xmax, box.ymax)),
                ]
                for detection in detections
                for box in (detection.box,)
            ]
        case Segmentation(segments=segments):
            columns = [
                text_column("label"),
                number_column("area px"),
                number_column("area %"),
                number_column("confidence"),
            ]
            rows = [
                [
                    segment.label,
                    str(segment.area),
                    f"{100 * segment.area / (width * height):.1f}",
                    f"{segment.confidence:.4f}",
                ]
                for segment in segments
            ]
    print_table(columns, rows, title=f"{name}  {width} x {height}  {result.meta.model}")


async def print_json(backend: Backend | AnalysisBackend, task: ClientTask, images: Sequence[ImageFile]) -> bool:
    """Print the REST answer for all images, if any succeeded. Returns whether all did.

    Raises:
        NoAnswer: different models answered, and the answer names only one.
    """
    results: list[msgspec.Raw] = []
    models: set[tuple[tuple[str, str], ...]] = set()
    complete = True
    async for image, outcome in predict_each(backend.predict, images, backend.concurrency, printing=False):
        if isinstance(outcome, ConvMLPError):
            complete = False
            results.append(msgspec.Raw(encode_error(problem_of(outcome, quote(image.name, errors="replace")))))
        elif isinstance(outcome, Analysis):
            models.add(tuple(outcome.models.items()))
            encoded, whole = _analysis_json(image.name, outcome)
            results.append(msgspec.Raw(encoded))
            complete = complete and whole
        else:
            models.add(((task, outcome.meta.model),))
            results.append(msgspec.Raw(msgspec.json.encode(outcome.to_dict())))
    if len(models) > 1:
        names = ", ".join(sorted({model for of_image in models for _, model in of_image}))
        raise NoAnswer(f"the service changed its model meanwhile ({names}); name one with --model")
    if models:
        answered = dict(models.pop())
        if task is ClientTask.ANALYZE:
            typer.echo(encode_analysis_answer(answered, results))
        else:
            typer.echo(msgspec.json.encode(Answer(answered[task], task, results)))
    return complete


def _analysis_json(name: str, analysis: Analysis) -> tuple[bytes, bool]:
    """The place of an image in `results`, and whether it has all answers; errors are printed as well."""
    answers: dict[str, bytes] = {}
    complete = True
    for of, answer in analysis.answers.items():
        if isinstance(answer, ClientError):
            complete = False
            print_error(f"{name}: {of}: {answer.detail}")
            error = error_from_code(answer.code, answer.detail, answer.retry_after_s)
            answers[of] = encode_error(problem_of(error, quote(f"{name}#{of}", errors="replace")))
        else:
            answers[of] = msgspec.json.encode(answer.to_dict())
    return encode_analysis(Size(analysis.image.height, analysis.image.width), answers), complete


async def save_drawings(
    backend: Backend | AnalysisBackend, images: Sequence[ImageFile], paths: Sequence[Path], view: View | None = None
) -> bool:
    """Draw each result on its image, or take `view` of it, and write it to its path. Returns whether all succeeded."""
    picture_format = FORMATS[paths[0].suffix.lower()]
    target_of = dict(zip(images, paths, strict=True))

    async def draw(image: bytes) -> bytes:
        result = await backend.predict(image)
        if view is not None:
            return await asyncio.to_thread(_view_of, result, view)
        return await asyncio.to_thread(drawn, image, result, picture_format)

    complete = True
    async for image, outcome in predict_each(draw, images, backend.concurrency, printing=True):
        if isinstance(outcome, ConvMLPError):
            complete = False
            continue
        target = target_of[image]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(outcome)
        except OSError as error:
            print_error(f"{target}: cannot be written: {error.strerror}")
            complete = False
        else:
            typer.echo(printable(f"{image.name} -> {target}"))
    return complete


def drawn(image: bytes, result: Result | Analysis, picture_format: PictureFormat) -> bytes:
    """An image with a result drawn on it, encoded. Raises NoAnswer where it cannot be drawn."""
    assert not isinstance(result, Embedding)
    if isinstance(result, Analysis):
        failed = next((answer for answer in result.answers.values() if isinstance(answer, ClientError)), None)
        if failed is not None:  # a drawing cannot show that it is missing
            raise error_from_code(failed.code, failed.detail, failed.retry_after_s)
    # Decoded as the service decodes it, so that the coordinates fit for any orientation.
    picture = decode(image, DecodeLimits(MAX_READ_BYTES, result.image.width * result.image.height))
    try:
        drawing = result.draw(picture.pixels)
    except ValueError as error:
        raise NoAnswer(f"the result cannot be drawn: {error}") from error
    return encode_picture(scaled_down(Image(np.asarray(drawing))), picture_format)


def _view_of(result: Result | Analysis, view: View) -> bytes:
    """The class of each pixel, or its confidence, as PNG."""
    assert isinstance(result, Segmentation)
    try:
        return encode_label_map(result.label_map() if view is View.LABEL_MAP else result.confidence_map())
    except ValueError as error:
        raise NoAnswer(f"the result has no {view} of its pixels: {error}") from error


async def predict_each(
    predict: Callable[[bytes], Awaitable[T]], images: Sequence[ImageFile], concurrency: int, *, printing: bool
) -> AsyncIterator[tuple[ImageFile, T | ConvMLPError]]:
    """The images in their order, each with its result, or with an error that was printed."""
    slots = asyncio.Semaphore(concurrency)
    fatal: ConvMLPError | None = None

    async def outcome_of(image: ImageFile) -> T | ConvMLPError:
        nonlocal fatal
        async with slots:
            if fatal is not None:
                return fatal
            try:
                return await predict(image.read())
            except FATAL as error:
                fatal = fatal or error
                return fatal
            except ConvMLPError as error:
                return error
            finally:
                advance()

    with image_progress(len(images), printing=printing) as advance:
        tasks = [asyncio.create_task(outcome_of(image)) for image in images]
        printed = False
        for image, task in zip(images, tasks, strict=True):
            outcome = await task
            if isinstance(outcome, FATAL):
                if not printed:
                    print_error(outcome.detail)
                printed = True
            elif isinstance(outcome, ConvMLPError):
                print_error(f"{image.name}: {outcome.detail}")
            yield image, outcome
