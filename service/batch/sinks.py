"""The rows of a job, in a folder that is this job's alone while it is open.

Rows are appended to a file of lines, `part-N.jsonl.partial`, as they arrive: a process that is killed loses none that
it has written. A full part is closed: renamed, or written as Parquet. COCO's document is made of all parts in the end.
A line that was torn by a kill is removed when the folder is opened again, and its picture is scored again.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from io import BufferedRandom
from pathlib import Path

import msgspec

from service.batch.manifest import SOFTWARE, JobEntry, Manifest, ResultsInvalid, read_manifest
from service.batch.parquet import read_parquet_heads, write_parquet
from service.batch.score import Row

PART_ROWS = 100_000
PART_BYTES = 64 << 20
"""A part is closed once it has so many rows, or bytes of JSON."""
PARTIAL = ".jsonl.partial"
LOCK_FILE = ".lock"


class OutputFormat(StrEnum):
    """`jsonl`: a line of JSON for each picture. `parquet`: a row with typed columns. `coco`: one document."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    COCO = "coco"


class _Problem(msgspec.Struct):
    type: str

    @property
    def code(self) -> str:
        return self.type.rpartition("/")[2]


class _AnswerHead(msgspec.Struct):
    error: _Problem | None = None


class _Head(msgspec.Struct):
    """What a row needs to be counted."""

    id: str
    error: _Problem | None = None
    answers: dict[str, _AnswerHead] = {}

    @property
    def errors(self) -> Iterator[str]:
        """The codes of a row's errors."""
        for error in (self.error, *(one.error for one in self.answers.values())):
            if error is not None:
                yield error.code


class Results:
    """The rows of one job. `open_results` makes it."""

    def __init__(self, folder: Path, output_format: OutputFormat, manifest: Manifest) -> None:
        self.folder = folder
        self.format = output_format
        self.manifest = manifest
        self.done: set[str] = set()
        """The ids of all rows."""
        self.errors: Counter[str] = Counter()
        self.repeats = manifest.repeats
        self._suffix = ".parquet" if output_format is OutputFormat.PARQUET else ".jsonl"
        self._number = 0
        self._rows = self._bytes = 0
        self._file: BufferedRandom | None = None
        self._opened_s = time.monotonic()

    def append(self, rows: Iterable[Row]) -> int:
        """Write rows; those of an id that has one are left out, and counted. How many were written.

        Raises:
            ResultsInvalid: they cannot be written.
        """
        lines = []
        for row in rows:
            if row.id in self.done:
                self.repeats += 1
                continue
            self.done.add(row.id)
            self.errors.update(row.errors)
            lines.append(row.line + b"\n")
        if not lines:
            return 0
        with self.write_errors():
            if self._file is None:
                self._file = self._partial.open("a+b")
            data = b"".join(lines)
            self._file.write(data)
            self._file.flush()
            self._rows, self._bytes = self._rows + len(lines), self._bytes + len(data)
            if self._rows >= PART_ROWS or self._bytes >= PART_BYTES:
                self.close_part()
        return len(lines)

    def close_part(self) -> None:
        """Close the part that is being written, if there is one. Raises OSError."""
        if self._file is None:
            return
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        target = self.folder / f"part-{self._number:05d}{self._suffix}"
        if self.format is OutputFormat.PARQUET:
            write_parquet(self._partial, target, self.manifest.job.models)
            self._partial.unlink()
        else:
            self._partial.rename(target)
        self._number, self._rows, self._bytes = self._number + 1, 0, 0

    def begin(self, precisions: Mapping[str, str], devices: Sequence[str]) -> None:
        """Write the manifest, with the precisions of the models by their names. Raises ResultsInvalid."""
        models = (msgspec.structs.replace(one, precision=precisions[one.model]) for one in self.manifest.job.models)
        job = msgspec.structs.replace(self.manifest.job, models=tuple(models))
        self.manifest = msgspec.structs.replace(self.manifest, job=job, devices=tuple(devices), software=SOFTWARE)
        self.save_manifest()

    def parts(self) -> list[Path]:
        """The closed parts."""
        return sorted(self.folder.glob(f"part-*{self._suffix}"))

    def save_manifest(self, listing_sha256: str = "") -> None:
        """Write the counts so far; `listing_sha256` means that the job is finished.

        Raises:
            ResultsInvalid: it cannot be written.
        """
        manifest = msgspec.structs.replace(
            self.manifest,
            finished=bool(listing_sha256),
            pictures=len(self.done),
            errors=dict(sorted(self.errors.items())),
            repeats=self.repeats,
            seconds=round(self.manifest.seconds + time.monotonic() - self._opened_s, 1),
            listing_sha256=listing_sha256,
        )
        with self.write_errors():
            manifest.write(self.folder)

    @contextmanager
    def write_errors(self) -> Iterator[None]:
        """OSError → ResultsInvalid."""
        try:
            yield
        except OSError as error:
            raise ResultsInvalid(
                f"{error.filename or self.folder} cannot be written: {error.strerror or error}; the same command goes "
                "on from here"
            ) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def recover(self) -> None:
        """Count the rows of earlier runs. Raises OSError, ResultsInvalid."""
        for part in self.parts():
            self._number = int(part.name.removeprefix("part-").removesuffix(self._suffix)) + 1
            self._count(read_parquet_heads(part) if self.format is OutputFormat.PARQUET else _lines(part))
        for partial in self.folder.glob(f"part-*{PARTIAL}"):
            if partial != self._partial:  # its part was closed, but for its removal
                partial.unlink()
        if self._partial.exists():
            _remove_torn_line(self._partial)
            before = len(self.done)
            self._count(_lines(self._partial))
            self._rows = len(self.done) - before
            self._file = self._partial.open("a+b")
            self._bytes = self._file.seek(0, os.SEEK_END)

    @property
    def _partial(self) -> Path:
        return self.folder / f"part-{self._number:05d}{PARTIAL}"

    def _count(self, heads: Iterable[bytes]) -> None:
        for number, text in enumerate(heads, start=1):
            try:
                head = msgspec.json.decode(text, type=_Head)
            except msgspec.MsgspecError as error:
                raise ResultsInvalid(
                    f"row {number} of a part in {self.folder} is damaged: {error}; name another folder, or delete the "
                    "part: its pictures are scored again"
                ) from error
            self.done.add(head.id)
            self.errors.update(head.errors)


@contextmanager
def open_results(folder: Path, job: JobEntry) -> Iterator[Results]:
    """Open a folder's results, or begin them. A precision `auto` is taken from those that exist.

    Raises:
        ResultsInvalid: the folder has results of another job; they are damaged; another process writes
            there; or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK_FILE).open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ResultsInvalid(
                    f"another job writes to {folder}; wait for its end, or name another folder"
                ) from None
            found = read_manifest(folder)
            if found is None and any(folder.glob("part-*")):
                raise ResultsInvalid(f"{folder} has results without a manifest; name another folder")
            if found is not None:
                job = with_known_precisions(job, found.job)
                if job != found.job:
                    differences = "; ".join(found.job.differences(job))
                    raise ResultsInvalid(f"{folder} has the results of another job: {differences}; name another folder")
            results = Results(folder, OutputFormat(job.format), found or Manifest(job))
            try:
                results.recover()
                yield results
            finally:
                results.close()
    except OSError as error:
        raise ResultsInvalid(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error


def with_known_precisions(job: JobEntry, found: JobEntry) -> JobEntry:
    """A job whose precisions are those of an earlier run where they are `auto`."""
    known = found.precisions
    return msgspec.structs.replace(
        job,
        models=tuple(
            msgspec.structs.replace(one, precision=known.get(one.model, one.precision))
            if one.precision == "auto"
            else one
            for one in job.models
        ),
    )


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _remove_torn_line(path: Path) -> None:
    """Cut off what follows the last line break."""
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - (1 << 16))
            file.seek(start)
            position = file.read(end - start).rfind(b"\n")
            if position >= 0:
                file.truncate(start + position + 1)
                return
            end = start
        file.truncate(0)
