"""Which models are served, kept where a restarted worker finds it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

log = structlog.get_logger(__name__)


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`configured` is what the settings said; once they say something else, the rest is out of date."""

    configured: tuple[str, ...]
    served: tuple[str, ...]


class ServedFile:
    """Names of models, in the order of their being served; without a `path` nothing is ever kept."""

    def __init__(self, path: Path | None, configured: tuple[str, ...]) -> None:
        self._path = path
        self._configured = configured

    def read(self) -> tuple[str, ...]:
        """What was served last, or what is configured: where nothing was kept, or nothing that can be used."""
        if self._path is None:
            return self._configured
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Kept)
        except FileNotFoundError:
            return self._configured
        except (OSError, msgspec.DecodeError) as error:
            log.warning("what was served last cannot be read; serving what is configured", error=str(error))
            return self._configured
        if kept.configured != self._configured:
            log.warning("other models are configured than when some were loaded; serving what is configured")
            return self._configured
        return kept.served

    def write(self, served: Sequence[str]) -> None:
        """Keep names, whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path is None:
            return
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f".{self._path.name}-", delete=False) as file:
            try:
                file.write(msgspec.json.encode(_Kept(self._configured, tuple(served))))
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(self._path)
            except BaseException:
                Path(file.name).unlink()
                raise
