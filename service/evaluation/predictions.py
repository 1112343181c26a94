"""The predictions of a model for a data set, kept in a folder so that a run that was stopped continues.

`manifest.json` identifies model, data and parameters. `predictions.jsonl` has a line for each picture, written when its
prediction arrives: the name and the REST API's result, or an error. A picture's last line counts.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

import msgspec

from convmlp_client.convert import result_from_json
from convmlp_client.results import Meta, Result
from convmlp_client.results import Task as ClientTask
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable
from model.files import open_regular, replace_file
from model.types import Task
from service.errors import (
    BadParameter,
    DeadlineExceeded,
    Forbidden,
    Internal,
    ModelNotFound,
    RetryLater,
    Unauthenticated,
)
from service.evaluation.dataset import DataInvalid, Dataset, Sample

MANIFEST_FILE = "manifest.json"
PREDICTIONS_FILE = "predictions.jsonl"
MAX_PICTURE_BYTES = 256 << 20
"""More than any service accepts."""

SERVICE_ERRORS = (RetryLater, ModelNotFound, BadParameter, Unauthenticated, Forbidden)
"""Errors that are not of the picture, where a service predicts: a run stops, so that it can continue."""

TRANSIENT = frozenset({DeadlineExceeded.code, Internal.code})
"""Codes of errors that may be of the picture: the run goes on, and a later one predicts the picture again."""

Parameters = Mapping[str, str | int | float]


class ModelIdentity(msgspec.Struct, frozen=True):
    """The model that predicts, in one state. `score_threshold`: the model's own, None if it has none or is unknown.

    `pipeline_sha256`: of pre- and postprocessing; empty if a service does not report it. `palette`: for drawings.
    """

    name: str
    task: Task
    labels: tuple[str, ...]
    weights_sha256: str
    precision: str
    score_threshold: float | None = None
    pipeline_sha256: str = ""
    palette: tuple[tuple[int, int, int], ...] | None = None


class Manifest(msgspec.Struct, frozen=True):
    """What a folder's predictions are of."""

    model: str
    task: Task
    weights_sha256: str
    pipeline_sha256: str
    precision: str
    labels_sha256: str
    data: str
    data_sha256: str
    pictures: int
    parameters: dict[str, str | int | float]
    format: int = 1

    @classmethod
    def of(cls, model: ModelIdentity, dataset: Dataset, data_sha256: str, parameters: Parameters) -> Manifest:
        return cls(
            model.name,
            model.task,
            model.weights_sha256,
            model.pipeline_sha256,
            model.precision,
            hashlib.sha256("\n".join(model.labels).encode("utf-8", "surrogateescape")).hexdigest(),
            dataset.format.value,
            data_sha256,
            len(dataset.samples),
            dict(parameters),
        )

    def differences(self, other: Manifest) -> list[str]:
        """The fields in which two manifests differ, as text: this one's value, then the other's."""
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__)
        return [f"{name.replace('_', ' ')} {mine}, now {theirs}" for name, mine, theirs in pairs if mine != theirs]


class PredictionError(msgspec.Struct, frozen=True):
    """Why a picture has no result: the error's stable name, and its detail."""

    code: str
    detail: str


class _ResultLine(msgspec.Struct):
    """`result` as in `results` of the REST API."""

    image: str
    result: msgspec.Raw


class _ErrorLine(msgspec.Struct):
    image: str
    error: PredictionError


class _Name(msgspec.Struct):
    image: str


class _Line(msgspec.Struct):
    """Either of the two."""

    image: str
    result: msgspec.Raw = msgspec.Raw()
    error: PredictionError | None = None


class PredictionLog:
    """The lines of one run, in a folder that is this run's alone while it is open. `open_log` makes it."""

    def __init__(self, file: BufferedRandom, task: Task, done: Mapping[str, int]) -> None:
        self._file = file
        self._task = task
        self.done = done
        """The pictures that had a result, or an error that is not TRANSIENT, when the log was opened: by name, where in
        the file their last line begins."""

    def outcome(self, image: str) -> Result | PredictionError:
        """What a picture of `done` has."""
        self._file.seek(self.done[image])
        line = msgspec.json.decode(self._file.readline(), type=_Line)
        self._file.seek(0, os.SEEK_END)
        return self._outcome(line)

    def _outcome(self, line: _Line) -> Result | PredictionError:
        return line.error or result_from_json(line.result, Meta("", ClientTask(self._task)))

    def append(self, image: str, outcome: Result | PredictionError) -> None:
        """Write a picture's line. It is not lost if the process is killed afterwards."""
        line: _ErrorLine | _ResultLine
        if isinstance(outcome, PredictionError):
            line = _ErrorLine(image, outcome)
        else:
            line = _ResultLine(image, msgspec.Raw(msgspec.json.encode(outcome.to_dict())))
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def results(self) -> Iterator[tuple[str, Result | PredictionError]]:
        """Each picture's name with its result or error, by its last line, in the order of the lines."""
        self._file.seek(0)
        last = {msgspec.json.decode(line, type=_Name).image: number for number, line in enumerate(self._file)}
        self._file.seek(0)
        for number, text in enumerate(self._file):
            line = msgspec.json.decode(text, type=_Line)
            if last[line.image] == number:
                yield line.image, self._outcome(line)
        self._file.seek(0, os.SEEK_END)


@contextmanager
def open_log(folder: Path, manifest: Manifest) -> Iterator[PredictionLog]:
    """Open the folder's predictions, or begin them. A last line that is not complete is removed.

    Raises:
        DataInvalid: the folder's predictions are of another model, data or parameters, or damaged; another run writes
            there; or the folder cannot be written.
    """
    file = _opened(folder)
    with file:
        try:
            _lock(file, folder)
            _check_manifest(folder, manifest)
            log = PredictionLog(file, manifest.task, dict(_repaired(file, folder)))
        except OSError as error:
            raise _cannot_write(folder, error) from error
        yield log


async def predict_all(
    predict: Callable[[bytes], Awaitable[Result]],
    samples: Iterable[Sample],
    log: PredictionLog,
    *,
    concurrency: int,
    stopping: tuple[type[ConvMLPError], ...],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Predict the pictures that the log does not have yet. A picture with an error gets a line, too.

    Args:
        predict: the result for one encoded image; raises ConvMLPError.
        samples: of the data set.
        log: where the results are written.
        concurrency: maximum number of concurrent predictions.
        stopping: errors that are not of the picture.
        advance: called once for each picture.

    Raises:
        ConvMLPError: one of `stopping`. What was predicted before is in the log.
    """
    pending = iter([sample for sample in samples if sample.name not in log.done])

    async def predict_pending() -> None:
        for sample in pending:
            outcome: Result | PredictionError
            try:
                outcome = await predict(await asyncio.to_thread(read_picture, sample.path))
            except stopping:
                raise
            except ConvMLPError as error:
                outcome = PredictionError(error.code, error.detail)
            log.append(sample.name, outcome)
            advance()

    tasks = [asyncio.create_task(predict_pending()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def read_picture(path: Path) -> bytes:
    """A picture's encoded bytes.

    Raises:
        ImageUndecodable: the file cannot be read.
        ImageTooLarge: it has more than MAX_PICTURE_BYTES.
    """
    try:
        with open_regular(path) as file:
            data = file.read(MAX_PICTURE_BYTES + 1)
    except OSError as error:
        raise ImageUndecodable(f"cannot be read: {error.strerror}") from error
    if len(data) > MAX_PICTURE_BYTES:
        raise ImageTooLarge(f"has more than {MAX_PICTURE_BYTES:,} bytes")
    return data


def _opened(folder: Path) -> BufferedRandom:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / PREDICTIONS_FILE).open("a+b")
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> DataInvalid:
    return DataInvalid(f"{error.filename or folder} cannot be written: {error.strerror}")


def _lock(file: BufferedRandom, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataInvalid(f"another run writes to {folder}; name another folder, or wait for its end") from None


def _check_manifest(folder: Path, manifest: Manifest) -> None:
    path = folder / MANIFEST_FILE
    if not path.exists():
        if (folder / PREDICTIONS_FILE).stat().st_size:
            raise DataInvalid(f"{folder} has predictions without {MANIFEST_FILE}; name another folder")
        replace_file(path, msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        return
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.MsgspecError as error:
        raise DataInvalid(f"{path} is not a manifest of predictions: {error}; name another folder") from error
    if found != manifest:
        raise DataInvalid(
            f"{folder} has predictions of another run: {'; '.join(found.differences(manifest))}; name another folder"
        )


def _repaired(file: BufferedRandom, folder: Path) -> Iterator[tuple[str, int]]:
    """The pictures that are not predicted again: name, and where the line begins.

    A last line that is not complete is removed.
    """
    file.seek(0)
    end = 0
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            file.truncate(end)
            break
        try:
            found = msgspec.json.decode(line, type=_Line)
        except msgspec.MsgspecError as error:
            raise DataInvalid(
                f"{folder / PREDICTIONS_FILE}: line {number} is damaged: {error}; without the line its picture is "
                "predicted again"
            ) from error
        if found.error is None or found.error.code not in TRANSIENT:
            yield found.image, end
        end += len(line)
    file.seek(0, os.SEEK_END)
