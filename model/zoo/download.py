"""A file fetched over HTTP: whole, of the hash that it should have, or not at all.

What comes goes to a part file beside the target (`model/zoo/transfer.py`), which is renamed once it is whole and
checked. A download that breaks off, by the network or by the end of the process, is resumed where it stopped.

Trust on first use: the hashes of files that were downloaded and found good, by URL, are in one small JSON file.

    expected = ExpectedHash.given(user's) or trusted.get(url)
    sha256 = download(url, target, expected=expected, ...)
    ... read the file; only if it is what it should be:
    trusted.record(url, sha256)
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx2
from pydantic import TypeAdapter, ValidationError

from model.bundle import Sha256, file_sha256
from model.errors import ConvMLPError
from model.zoo.transfer import PartialFile, PermanentFailure, Transfer, TransientFailure

_OTHER_SOURCE = "name another place with --mirror or --url"


class DownloadFailed(ConvMLPError):
    """A file cannot be had from where it was looked for, or is not the one that was expected."""

    code = "download-failed"


@dataclass(frozen=True, slots=True)
class ExpectedHash:
    """What a file's SHA-256 must be, in lower case hex, and who says so: words that follow "was"."""

    sha256: str
    origin: str

    @classmethod
    def given(cls, text: str) -> Self:
        """The hash that a user gave. Raises DownloadFailed where it is none."""
        sha256 = text.strip().lower()
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise DownloadFailed(f"{text!r} is not a SHA-256; expected 64 hexadecimal digits")
        return cls(sha256, "given with --sha256")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a server is waited for, and how often it is asked again."""

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    """Between two pieces of the answer."""
    max_failures: int = 6
    """In a row without a byte that had not come before."""
    max_attempts: int = 100
    initial_backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    """A server that wants to be left alone for longer is not asked again."""
    sleep: Callable[[float], None] = time.sleep

    def backoff_s(self, failures: int) -> float:
        """Exponential back-off after so many failures in a row, with jitter."""
        return min(self.max_backoff_s, self.initial_backoff_s * 2.0 ** (failures - 1)) * random.uniform(0.5, 1.0)


_RETRY_POLICY = RetryPolicy()


def download(
    url: str,
    target: Path,
    *,
    max_bytes: int,
    progress: Callable[[int, int | None], None],
    on_retry: Callable[[str], None],
    expected: ExpectedHash | None = None,
    retry: RetryPolicy = _RETRY_POLICY,
) -> str:
    """Fetch `url` into `target`, replacing it, and return its SHA-256 in lower case hex.

    `progress` hears the bytes at hand and, where the server tells, of how many; `on_retry` hears why there is a pause.

    Raises:
        DownloadFailed: it is not to be had, too large, not of the `expected` hash, or cannot be written. `target` is
            as before; a part that another call can go on from is kept, one with the wrong content is removed.
    """
    address = _address(url)
    try:
        with _exclusive(target), _client(retry) as client:
            part = PartialFile(target, public_url(url))
            transfer = Transfer(client, address, part, max_bytes, progress, hash_known=expected is not None)
            _fetch(transfer, retry, on_retry)
            sha256 = file_sha256(part.path)
            if expected is not None and sha256 != expected.sha256:
                part.discard()
                raise DownloadFailed(
                    f"{part.url} has sha256 {sha256}, but {expected.sha256} was {expected.origin}. It was "
                    "damaged on its way or changed at its source, and is removed: try again, or "
                    f"{_OTHER_SOURCE}. Only if its publisher says that it changed, give the new hash with --sha256"
                )
            part.move_to_target()
    except OSError as error:
        raise DownloadFailed(
            f"cannot write {error.filename or target}: {error.strerror or error}; make room or mend the permissions, "
            "or choose another --models-dir, and run again"
        ) from error
    return sha256


def public_url(url: str) -> str:
    """`url` without user, password and fragment: fit to be printed and kept. Raises DownloadFailed where it is none."""
    return str(_address(url).copy_with(userinfo=b"", fragment=None))


def _address(url: str) -> httpx2.URL:
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise DownloadFailed(f"{url!r} is not a URL: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise DownloadFailed(
            f"{url!r} does not begin with http://HOST or https://HOST; `convmlp models import` reads a file at hand"
        )
    return address


def _client(retry: RetryPolicy) -> httpx2.Client:
    try:
        return httpx2.Client(timeout=httpx2.Timeout(retry.read_timeout_s, connect=retry.connect_timeout_s))
    except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
        raise DownloadFailed(
            f"the environment's proxy or certificates (HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE) cannot be used: {error}"
        ) from error


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """No other process downloads to `target` meanwhile. The lock ends with the process; its file stays."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f"{target.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadFailed(f"another process is downloading {target}; run again once it is done") from None
        yield


def _fetch(transfer: Transfer, retry: RetryPolicy, on_retry: Callable[[str], None]) -> None:
    """Make the part complete, in several attempts if it must be. Raises DownloadFailed, OSError."""
    part = transfer.part
    furthest = part.size
    failures = 0
    for attempt in range(1, retry.max_attempts + 1):
        try:
            return transfer.attempt()
        except PermanentFailure as error:
            raise _failed(part, str(error)) from error
        except TransientFailure as error:
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            wait_s = max(error.retry_after_s, retry.backoff_s(failures))
            if failures == retry.max_failures or attempt == retry.max_attempts:
                raise _failed(part, f"{error} (attempt {attempt}, the last); try again later") from error
            if wait_s > retry.max_backoff_s:
                raise _failed(part, f"{error} and asks to be left alone for {wait_s:.0f} s; try again later") from error
            on_retry(f"{error}; trying again in {wait_s:.1f} s")
            retry.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _failed(part: PartialFile, reason: str) -> DownloadFailed:
    kept = f". The {part.size} bytes that came are kept; the next run goes on from there" if part.resumable else ""
    return DownloadFailed(f"cannot download {part.url}: {reason}, or {_OTHER_SOURCE}{kept}")


_HASHES = TypeAdapter(dict[str, Sha256])


class TrustedHashes:
    """The hashes in the file `path`, which need not be there yet. Several processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, url: str) -> ExpectedHash | None:
        """What the file at `url` must be; None before its first use. Raises DownloadFailed: unreadable."""
        sha256 = self._read().get(public_url(url))
        origin = f"recorded in {self._path} at the first download"
        return ExpectedHash(sha256, origin) if sha256 is not None else None

    def record(self, url: str, sha256: str) -> None:
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
