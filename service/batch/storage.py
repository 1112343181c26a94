"""Where pictures lie: local folders, and object stores by URI, which pyarrow reads."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable
from model.files import open_regular
from service.evaluation.predictions import MAX_PICTURE_BYTES, read_picture

SCHEMES = ("s3", "gs")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PARQUET = ".parquet"
"""Suffixes of shards, which have many pictures each."""
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S, ATTEMPTS = 10.0, 60.0, 4
"""Bounds of a request to an object store."""


class StorageFailed(ConvMLPError):
    """An object store does not answer, or refuses; or a folder is missing. No picture is at fault: the job stops, and
    can be continued."""

    code = "storage-failed"


class PackageMissing(ConvMLPError):
    """A package is not installed that this source, or this format of results, needs."""

    code = "package-missing"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder: a local path, or with a scheme the URI of an object store's; `endpoint_url` is that of the store, where
    it is not the one of the environment."""

    root: str
    endpoint_url: str | None = None

    @property
    def is_remote(self) -> bool:
        return "://" in self.root

    def file(self, name: str) -> Path:
        """The local path of a file below this folder, or of an absolute one."""
        return Path(self.root, name)

    def open(self, name: str) -> BinaryIO:
        """A file, for reading; one of an object store can seek, with a request for each read.

        Raises:
            OSError: it does not exist, or cannot be opened.
            StorageFailed: the object store does not answer, or refuses; or the local folder does not exist here.
        """
        if not self.is_remote:
            with self._local_errors():
                return open_regular(self.file(name))
        with remote_errors():
            return cast(BinaryIO, self.filesystem().open_input_file(self.path(name)))

    def read(self, name: str) -> bytes:
        """The bytes of a picture.

        Raises:
            ImageUndecodable: it does not exist, or cannot be read.
            ImageTooLarge: it has more than MAX_PICTURE_BYTES.
            StorageFailed: as `open`.
        """
        if not self.is_remote:
            with self._local_errors():
                return read_picture(self.file(name))
        try:
            with remote_errors(), self.filesystem().open_input_stream(self.path(name)) as stream:
                data = bytes(stream.read(MAX_PICTURE_BYTES + 1))
        except OSError as error:
            raise ImageUndecodable("cannot be read: there is no such object") from error
        require_readable(len(data))
        return data

    def walk(self) -> Iterator[str]:
        """The names of all files below this folder but hidden ones, as paths relative to it, in a fixed order.

        Raises:
            OSError: the folder, or one below it, cannot be read.
            StorageFailed: as `open`.
        """
        if self.is_remote:
            yield from self._walk_remote()
            return
        for folder, below, files in os.walk(self.root, onerror=_raise):
            below[:] = sorted(name for name in below if not name.startswith("."))
            relative = PurePosixPath(os.path.relpath(folder, self.root))
            for name in sorted(files):
                if not name.startswith("."):
                    yield str(relative / name)

    def _walk_remote(self) -> Iterator[str]:
        filesystem = self.filesystem()
        from pyarrow import fs  # once it is known to be installed

        base = self.path("").rstrip("/")
        with remote_errors():
            found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
        names = (one.path[len(base) :].lstrip("/") for one in found if one.type is fs.FileType.File)
        for name in sorted(names):
            if not any(part.startswith(".") for part in name.split("/")):
                yield name

    @contextmanager
    def _local_errors(self) -> Iterator[None]:
        """An error of a file becomes StorageFailed if the whole folder is missing: on another node, or unmounted."""
        try:
            yield
        except (OSError, ImageUndecodable) as error:
            if Path(self.root).is_dir():
                raise
            raise StorageFailed(
                f"the folder {self.root} does not exist on {socket.gethostname()}; all nodes must have it at this path"
            ) from error

    def path(self, name: str) -> str:
        """The key with its bucket, as pyarrow has it."""
        parts = urlsplit(name if "://" in name else self.root)
        path = f"{parts.netloc}{parts.path}"
        return path if "://" in name or not name else f"{path.rstrip('/')}/{name}"

    def filesystem(self) -> Any:  # noqa: ANN401  (pyarrow has no types)
        """pyarrow's, of an object store. Raises PackageMissing, StorageFailed."""
        return _filesystem(urlsplit(self.root).scheme, self.endpoint_url)


def require_readable(size: int) -> None:
    """Raises ImageTooLarge for more than MAX_PICTURE_BYTES."""
    if size > MAX_PICTURE_BYTES:
        raise ImageTooLarge(f"has more than {MAX_PICTURE_BYTES:,} bytes")


def require_pyarrow(what: str) -> None:
    """Raises PackageMissing; `what` needs it."""
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise PackageMissing(
            f"{what} needs {error.name}, which is not installed; install this package's extra `parquet`"
        ) from error


class remote_errors:  # noqa: N801  (a context manager, as contextlib's)
    """Within it, an error of an object store that is not of one object becomes StorageFailed. `action` is what the
    store cannot be."""

    def __init__(self, action: str = "read") -> None:
        self._action = action

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        # pyarrow raises plain OSErrors for what is not of the object: credentials, connections, time-outs.
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | IsADirectoryError):
            raise StorageFailed(f"the object store cannot be {self._action}: {_first_sentence(error)}") from error


def _first_sentence(error: OSError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:400]


@lru_cache(maxsize=8)
def _filesystem(scheme: str, endpoint_url: str | None) -> Any:  # noqa: ANN401
    """Raises PackageMissing, StorageFailed."""
    require_pyarrow(f"{scheme}://")
    from pyarrow import fs

    if scheme == "gs":
        return fs.GcsFileSystem()
    endpoint = urlsplit(endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""))
    options = {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme} if endpoint.netloc else {}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    with remote_errors():
        return fs.S3FileSystem(
            **options,
            connect_timeout=CONNECT_TIMEOUT_S,
            request_timeout=REQUEST_TIMEOUT_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )


def _raise(error: OSError) -> None:
    raise error
