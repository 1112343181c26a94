"""Trust on first use: the hashes of files that were downloaded and found good, by URL, in one small JSON file.

expected = KnownHash.given(user's) or book.known(url)
sha256 = download(url, target, expected=expected, ...)
... read the file; only if it is what it should be:
book.trust(url, sha256)
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from model.bundle import Sha256
from model.zoo.download import DownloadFailed, KnownHash, public_url

_HASHES = TypeAdapter(dict[str, Sha256])


class HashBook:
    """The hashes in the file `path`, which need not be there yet. Several processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, url: str) -> KnownHash | None:
        """What the file at `url` must be; None before its first use. Raises DownloadFailed: the book is unreadable."""
        sha256 = self._read().get(public_url(url))
        origin = f"recorded in {self._path} at the first download"
        return KnownHash(sha256, origin) if sha256 is not None else None

    def trust(self, url: str, sha256: str) -> None:
        """From now on the file at `url` must have this hash. Raises DownloadFailed: it cannot be written down."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.with_name(f"{self._path.name}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                hashes = self._read() | {public_url(url): sha256}
                fresh = self._path.with_name(f"{self._path.name}.new")
                with fresh.open("w") as file:
                    file.write(json.dumps(hashes, indent=2, sort_keys=True) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                fresh.replace(self._path)
        except OSError as error:
            raise DownloadFailed(
                f"cannot record the hash of {public_url(url)} in {self._path}: {error.strerror or error}; make room or "
                "mend the permissions, or choose another --models-dir, and run again"
            ) from error

    def _read(self) -> dict[str, str]:
        try:
            return _HASHES.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise DownloadFailed(
                f"the recorded hashes in {self._path} cannot be read ({type(error).__name__}); expected one "
                "JSON object of URL and SHA-256: mend it, or move it away to trust each file anew on its next download"
            ) from error
