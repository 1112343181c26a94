"""Files of keys and certificates that are renewed while the process runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from service.frontend.core.tls import CertificateFiles, InvalidCertificates

T = TypeVar("T")

log = structlog.get_logger(__name__)

FileVersion = tuple[int, ...] | None


def file_version(path: Path) -> FileVersion:
    """A value that changes with the file, also where a link is changed to another file; None where it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class Reloaded(Generic[T]):
    """What `load` makes of the files, made again when they have changed. Any thread may ask for it.

    `load` raises InvalidCertificates. At first that is raised here; later it is logged, and the last valid one stays.
    """

    def __init__(self, files: CertificateFiles, load: Callable[[CertificateFiles], T]) -> None:
        self._files = files
        self._load = load
        self._lock = threading.Lock()
        self._versions = self._current_versions()
        self._loaded = load(files)

    def get(self) -> T:
        """The newest valid one. It costs a look at each file."""
        self.get_if_changed()
        return self._loaded

    def get_if_changed(self) -> T | None:
        """None where the files are unchanged since the last call of either kind, or invalid."""
        with self._lock:
            versions = self._current_versions()
            if versions == self._versions:
                return None
            self._versions = versions
            try:
                self._loaded = self._load(self._files)
            except InvalidCertificates as error:
                log.error("TLS certificates not reloaded", error=str(error))
                return None
            log.info("TLS certificates reloaded")
            return self._loaded

    def _current_versions(self) -> list[FileVersion]:
        return [file_version(path) for path in self._files.paths]
