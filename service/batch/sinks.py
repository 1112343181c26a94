"""The rows of a job, in a folder that is this job's alone while it is open.

Rows are appended to a file of lines, `part-N.jsonl.partial`, as they arrive: a process that is killed loses none that
it has written. A full part is closed: renamed, or written as Parquet. COCO's document is made of all parts in the end.
A line that was torn by a kill is removed when the folder is opened again, and its picture is scored again.

An object store gets closed parts alone, each as a whole. A kill loses the rows of the part that was being written;
their pictures are scored again.

Rows whose errors may not come again are in a part of their own, RETRY. The next run removes it, and scores its
pictures.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from io import BufferedRandom
from pathlib import Path

import msgspec

from service.batch.compact import IdSet
from service.batch.folders import ResultsFolder, ResultsInvalid, open_folder
from service.batch.manifest import SOFTWARE, JobEntry, Manifest, read_manifest
from service.batch.parquet import read_parquet_heads, write_parquet
from service.batch.score import Row

PART_ROWS = 100_000
PART_BYTES = 64 << 20
"""A part is closed once it has so many rows, or bytes of JSON."""
REMOTE_PART_S = 300.0
"""A part for an object store is closed after so long: a kill loses no more."""
PARTIAL = ".jsonl.partial"
RETRY = "part-retry"
WRITER_S = 45.0
"""A run that writes to an object store, and does not save its manifest for so long, has ended."""


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

    def __init__(self, folder: ResultsFolder, output_format: OutputFormat, manifest: Manifest) -> None:
        self.folder = folder
        self.format = output_format
        self.manifest = manifest
        self.done = IdSet()
        """The ids of all rows, but those of the earlier runs' RETRY."""
        self.errors: Counter[str] = Counter()
        self.repeats = manifest.repeats
        self._transient_errors = 0
        self._suffix = ".parquet" if output_format is OutputFormat.PARQUET else ".jsonl"
        self._number = 0
        self._rows = self._bytes = 0
        self._file: BufferedRandom | None = None
        self._retry: BufferedRandom | None = None
        self._opened_s = time.monotonic()
        self._part_opened_s = 0.0
        self._own = uuid.uuid4().hex if folder.is_remote else ""
        self._writer = manifest.writer
        """That of the manifest as this run saw it last."""

    def append(self, rows: Iterable[Row]) -> int:
        """Write rows; those of an id that has one are left out, and counted. How many were written.

        Raises:
            ResultsInvalid: they cannot be written.
            StorageFailed: as `open_results`.
        """
        lines: list[bytes] = []
        transient: list[bytes] = []
        for row in rows:
            if not self.done.add(row.id):
                self.repeats += 1
                continue
            self.errors.update(row.errors)
            (transient if row.transient else lines).append(row.line + b"\n")
        self._transient_errors += len(transient)
        with self.write_errors():
            if transient:
                self._retry = self._retry or self._made(RETRY).open("a+b")
                self._retry.writelines(transient)
                self._retry.flush()
            if lines:
                self._append(lines)
        return len(lines) + len(transient)

    def _append(self, lines: Sequence[bytes]) -> None:
        if self._file is None:
            self._file = self._partial.open("a+b")
            self._part_opened_s = time.monotonic()
        data = b"".join(lines)
        self._file.write(data)
        self._file.flush()
        self._rows, self._bytes = self._rows + len(lines), self._bytes + len(data)
        is_old = self.folder.is_remote and time.monotonic() - self._part_opened_s > REMOTE_PART_S
        if is_old or self._rows >= PART_ROWS or self._bytes >= PART_BYTES:
            self.close_part()

    def close_part(self) -> None:
        """Close the part that is being written, if there is one. Raises OSError, StorageFailed."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        self._publish(self._partial, f"part-{self._number:05d}{self._suffix}")
        self._number, self._rows, self._bytes = self._number + 1, 0, 0

    def close_parts(self) -> None:
        """Close all parts: every picture has a row. Raises OSError, StorageFailed."""
        self.close_part()
        if self._retry is not None:
            self._retry.close()
            self._retry = None
            self._publish(self._made(RETRY), RETRY + self._suffix)

    def _publish(self, lines: Path, name: str) -> None:
        self._require_writer()
        if self.format is not OutputFormat.PARQUET:
            self.folder.publish(lines, name)
            return
        made = lines.with_name(f".{name}.new")
        write_parquet(lines, made, self.manifest.job.models)
        self.folder.publish(made, name)
        lines.unlink()

    def begin(self, precisions: Mapping[str, str], devices: Sequence[str]) -> None:
        """Write the manifest, with the precisions of the models by their names, and remove the rows with transient
        errors of earlier runs. Raises ResultsInvalid, StorageFailed."""
        models = (msgspec.structs.replace(one, precision=precisions[one.model]) for one in self.manifest.job.models)
        job = msgspec.structs.replace(self.manifest.job, models=tuple(models))
        self.manifest = msgspec.structs.replace(self.manifest, job=job, devices=tuple(devices), software=SOFTWARE)
        self.save_manifest()
        with self.write_errors():
            self.folder.remove(RETRY + self._suffix)

    def parts(self) -> list[str]:
        """The names of the closed parts."""
        return [name for name in self.folder.names() if name.startswith("part-") and name.endswith(self._suffix)]

    def lines(self) -> Iterator[bytes]:
        """The rows of the closed parts, of lines of JSON. Raises OSError, StorageFailed."""
        for name in self.parts():
            yield from self._lines_of(name)

    def _lines_of(self, name: str) -> Iterator[bytes]:
        with self.folder.open(name) as file:
            yield from file

    def save_manifest(self, listing_sha256: str = "") -> None:
        """Write the counts so far; `listing_sha256` means that the job is finished.

        Raises:
            ResultsInvalid: it cannot be written, or another job writes to the same folder.
            StorageFailed: as `open_results`.
        """
        self._require_writer()
        self._save(listing_sha256, "" if listing_sha256 else self._own)

    def _save(self, listing_sha256: str, writer: str) -> None:
        self.manifest = msgspec.structs.replace(
            self.manifest,
            finished=bool(listing_sha256),
            pictures=len(self.done),
            errors=dict(sorted(self.errors.items())),
            transient_errors=self._transient_errors,
            repeats=self.repeats,
            seconds=round(self.manifest.seconds + time.monotonic() - self._opened_s, 1),
            listing_sha256=listing_sha256,
            writer=writer,
        )
        self._opened_s = time.monotonic()
        with self.write_errors():
            self.manifest.write(self.folder)
        self._writer = writer

    def _require_writer(self) -> None:
        """Raises ResultsInvalid: another run has written the manifest. A local folder has a lock for that."""
        if not self.folder.is_remote:
            return
        found = read_manifest(self.folder)
        if found is not None and found.writer != self._writer:
            raise ResultsInvalid(f"another job writes to {self.folder}; wait for its end, or name another folder")

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
        """End the run. An object store gets what was scored since its last part, and no longer has a writer."""
        if self._retry is not None:
            self._retry.close()
        if not self.folder.is_remote:
            if self._file is not None:
                self._file.close()
            return
        if self._writer == self._own:
            with self.write_errors():
                self.close_part()
            self._require_writer()
            self._save("", "")

    def recover(self) -> None:
        """Count the rows of earlier runs. Raises OSError, ResultsInvalid, StorageFailed."""
        for name in self.parts():
            if not name.startswith(RETRY):
                self._number = int(name.removeprefix("part-").removesuffix(self._suffix)) + 1
                self._count(self._heads(name))
        for partial in self.folder.work.glob(f"part-*{PARTIAL}"):
            if partial != self._partial:  # its part was closed, but for its removal; or it is of RETRY
                partial.unlink()
        if self._partial.exists():
            _remove_torn_line(self._partial)
            before = len(self.done)
            self._count(self._lines_of(self._partial.name))
            self._rows = len(self.done) - before
            self._file = self._partial.open("a+b")
            self._bytes = self._file.seek(0, os.SEEK_END)

    def _heads(self, name: str) -> Iterator[bytes]:
        if self.format is not OutputFormat.PARQUET:
            return self._lines_of(name)
        return read_parquet_heads(self.folder.open(name))

    @property
    def _partial(self) -> Path:
        return self._made(f"part-{self._number:05d}")

    def _made(self, part: str) -> Path:
        return self.folder.work / f"{part}{PARTIAL}"

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
def open_results(
    out: str | Path, job: JobEntry, endpoint_url: str | None = None, writer_s: float = WRITER_S
) -> Iterator[Results]:
    """Open a folder's results, or begin them. A precision `auto` is taken from those that exist.

    Args:
        out: a local folder, or the URI of one of an object store, at `endpoint_url` or where the environment names it.
        job: what the results are of.
        writer_s: how long is waited, where an earlier run did not end as it should, for a sign that it goes on.

    Raises:
        ResultsInvalid: the folder has results of another job; they are damaged; another process writes
            there; or the folder cannot be written.
        StorageFailed, PackageMissing: of the object store.
    """
    try:
        with open_folder(str(out), endpoint_url) as folder:
            found = read_manifest(folder)
            if found is None and any(name.startswith("part-") for name in folder.names()):
                raise ResultsInvalid(f"{folder} has results without a manifest; name another folder")
            if found is not None:
                job = with_known_precisions(job, found.job)
                if job != found.job:
                    differences = "; ".join(found.job.differences(job))
                    raise ResultsInvalid(f"{folder} has the results of another job: {differences}; name another folder")
                _wait_for_end(folder, found, writer_s)
            results = Results(folder, OutputFormat(job.format), found or Manifest(job))
            try:
                results.recover()
                yield results
            finally:
                results.close()
    except OSError as error:
        raise ResultsInvalid(f"{error.filename or out} cannot be written: {error.strerror or error}") from error


def _wait_for_end(folder: ResultsFolder, found: Manifest, writer_s: float) -> None:
    """Raises ResultsInvalid: the run that wrote a manifest goes on."""
    end_s = time.monotonic() + writer_s
    while found.writer and time.monotonic() < end_s:
        time.sleep(min(1.0, writer_s / 10))
        if read_manifest(folder) != found:
            raise ResultsInvalid(f"another job writes to {folder}; wait for its end, or name another folder")


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
