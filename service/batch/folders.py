"""Where the results of a job lie: a local folder, or one of an object store, to which parts are uploaded whole."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from model.errors import ConvMLPError
from model.files import replace_file
from service.batch.storage import SCHEMES, Place, StorageFailed, remote_errors

LOCK_FILE = ".lock"
READ_BYTES = 4 << 20
"""Of an object with rows, in a request."""
UPLOAD_BYTES = 16 << 20
"""Of a file that are in memory at once while it is uploaded."""


class ResultsInvalid(ConvMLPError):
    """The folder of results cannot be written, is damaged, or is of another job."""

    code = "results-invalid"


class ResultsFolder(Protocol):
    """Files by their names. `work` is a local folder, where files are made before they are published."""

    @property
    def work(self) -> Path: ...

    @property
    def is_remote(self) -> bool: ...

    def names(self) -> list[str]:
        """Of all files but hidden ones, in order."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file, for reading; it can seek."""
        ...

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a small file, or replace it, as a whole or not at all."""
        ...

    def publish(self, made: Path, name: str) -> None:
        """Move a file of `work` to its place, as a whole or not at all."""
        ...

    def remove(self, name: str) -> None: ...


class LocalFolder:
    """A folder of this machine; files are made in it."""

    is_remote = False

    def __init__(self, path: Path) -> None:
        self.work = path

    def __str__(self) -> str:
        return str(self.work)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.work.iterdir() if not path.name.startswith("."))

    def open(self, name: str) -> BinaryIO:
        return (self.work / name).open("rb")

    def read(self, name: str) -> bytes | None:
        try:
            return (self.work / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        replace_file(self.work / name, content, 0o644)

    def publish(self, made: Path, name: str) -> None:
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.rename(self.work / name)

    def remove(self, name: str) -> None:
        (self.work / name).unlink(missing_ok=True)


class RemoteFolder:
    """A prefix of an object store. What is being made lies in a temporary folder of this machine."""

    is_remote = True

    def __init__(self, place: Place, work: Path) -> None:
        self._place = place
        self.work = work

    def __str__(self) -> str:
        return self._place.root

    def names(self) -> list[str]:
        try:
            return [name for name in self._place.walk() if "/" not in name]
        except FileNotFoundError:  # a prefix is there once it has an object
            return []

    def open(self, name: str) -> BinaryIO:
        return io.BufferedReader(cast(io.RawIOBase, self._place.open(name)), READ_BYTES)

    def read(self, name: str) -> bytes | None:
        try:
            with self._place.open(name) as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        self._upload(io.BytesIO(content), len(content), name)

    def publish(self, made: Path, name: str) -> None:
        with made.open("rb") as file:
            self._upload(file, made.stat().st_size, name)
        made.unlink()

    def remove(self, name: str) -> None:
        with remote_errors("written"):
            try:
                self._place.filesystem().delete_file(self._place.path(name))
            except FileNotFoundError:
                return

    def _upload(self, source: BinaryIO, size: int, name: str) -> None:
        """An object is there once all of it has arrived: its size is compared with the file's."""
        filesystem, path = self._place.filesystem(), self._place.path(name)
        with remote_errors("written"):
            with filesystem.open_output_stream(path) as target:
                shutil.copyfileobj(source, target, UPLOAD_BYTES)
            arrived = filesystem.get_file_info(path).size
        if arrived != size:
            raise StorageFailed(f"{self}/{name} has {arrived} bytes after its upload, and not {size}; upload it again")


@contextmanager
def open_folder(out: str, endpoint_url: str | None = None) -> Iterator[ResultsFolder]:
    """The folder that OUT names, made if it is local and missing. A local one is this process's alone until the end.

    Raises:
        ResultsInvalid: OUT is no folder, or another job writes to it.
        StorageFailed, PackageMissing: as `Place.open`.
        OSError: it cannot be made.
    """
    scheme, separator, rest = out.partition("://")
    if separator:
        if scheme not in SCHEMES or not rest.strip("/"):
            raise ResultsInvalid(f"{out} cannot be written; expected a folder, or {SCHEMES[0]}://BUCKET/PREFIX")
        with tempfile.TemporaryDirectory(prefix="convmlp-batch-") as work:
            yield RemoteFolder(Place(out.rstrip("/"), endpoint_url), Path(work))
        return
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultsInvalid(f"another job writes to {out}; wait for its end, or name another folder") from None
        yield LocalFolder(path)
