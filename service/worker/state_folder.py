"""What a worker measured, kept for its next start: a small file for each measurement.

A measurement holds for a key: what was measured, and on what. Workers may share a folder: each file is written whole or
not at all. A file that is damaged, or of another key, is as good as none, and is replaced by the next measurement.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from model.files import open_regular, replace_file

FORMAT = "2"
"""Part of every key: raised when what is measured, or how, changes."""
MAX_FILES = 256
"""Beyond it the files that were written longest ago are deleted."""
MAX_FILE_BYTES = 64 << 10

T = TypeVar("T")

log = structlog.get_logger(__name__)


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file's content; `key` is for people, and shows a file that was copied to another name."""

    key: tuple[str, ...]
    value: msgspec.Raw


class StateFolder:
    """Measurements in `path`/measurements. Nothing is kept where `path` is None, or cannot be read or written, which is
    logged once: the next start measures again."""

    def __init__(self, path: Path | None) -> None:
        self._folder = None if path is None else path / "measurements"
        self._warned = False

    def read(self, kind: str, key: Sequence[str], value_type: type[T]) -> T | None:
        """The measurement that was kept for a key; None if there is none."""
        if self._folder is None:
            return None
        path = self._path(kind, key)
        try:
            with open_regular(path) as file:
                content = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_Content)
            if content.key != (FORMAT, *key):
                raise msgspec.ValidationError("it was written for another key")
            return msgspec.json.decode(content.value, type=value_type)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn("cannot read measurements", error)
        except msgspec.DecodeError as error:
            log.warning("a kept measurement is damaged; measuring again", path=str(path), error=str(error))
        return None

    def write(self, kind: str, key: Sequence[str], value: object) -> None:
        """Keep a measurement for a key, in the place of the last one."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            content = _Content((FORMAT, *key), msgspec.Raw(msgspec.json.encode(value)))
            replace_file(self._path(kind, key), msgspec.json.encode(content))
            self._prune(self._folder)
        except OSError as error:
            self._warn("cannot keep measurements", error)

    def _path(self, kind: str, key: Sequence[str]) -> Path:
        assert self._folder is not None
        return self._folder / f"{kind}-{hashlib.sha256(msgspec.json.encode((FORMAT, *key))).hexdigest()[:32]}.json"

    def _prune(self, folder: Path) -> None:
        """Delete the oldest files, temporary ones of processes that were killed included."""
        with os.scandir(folder) as entries:
            files = [(entry.stat(follow_symlinks=False).st_mtime_ns, entry.path) for entry in entries]
        for _, path in sorted(files)[: max(0, len(files) - MAX_FILES)]:
            Path(path).unlink(missing_ok=True)

    def _warn(self, event: str, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning(f"{event}; the next start measures again", folder=str(self._folder), error=error.strerror)


NOTHING_KEPT = StateFolder(None)
