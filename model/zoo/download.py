"""Downloads over HTTP: resumable, retried, hash checked.

The body goes to a partial file beside the target (`model/zoo/transfer.py`), which is renamed once it is complete and
its hash is checked. An interrupted download is resumed, also by another process.

Trust on first use: `TrustedHashes` keeps the hashes of good downloads by URL in a JSON file.

    expected = ExpectedHash.given(user's) or trusted.get(url)
    sha256 = download(url, target, expected=expected, ...)
    ... read the file; if it is valid:
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
from model.zoo.transfer import PartialFile, PermanentFailure, Transfer, TransientFailure, Unreachable

MAX_LOCK_ATTEMPTS = 5
"""Other processes may remove the lock file while it is being locked."""
_OTHER_SOURCE = "try another source with --mirror or --url"


class DownloadFailed(ConvMLPError):
    """A file cannot be downloaded or written, or does not have the expected hash."""

    code = "download-failed"


@dataclass(frozen=True, slots=True)
class ExpectedHash:
    """A file's expected SHA-256 in lower-case hex, and its origin as a phrase after "was"."""

    sha256: str
    origin: str

    @classmethod
    def given(cls, text: str) -> Self:
        """A hash from the command line. Raises DownloadFailed: not a SHA-256."""
        sha256 = text.strip().lower()
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise DownloadFailed(f"{text!r} is not a SHA-256; expected 64 hexadecimal digits")
        return cls(sha256, "given with --sha256")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Timeouts, and how failed attempts are retried."""

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    """Between two chunks of the body."""
    max_failures: int = 6
    """Consecutive failed attempts without a new byte."""
    max_attempts: int = 100
    initial_backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    """A server whose Retry-After is longer is not retried."""
    sleep: Callable[[float], None] = time.sleep

    def backoff_s(self, failures: int) -> float:
        """Exponential back-off with jitter, after so many consecutive failures."""
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
    """Download `url` to `target`, replacing it.

    Args:
        url: http or https.
        target: the file to write.
        max_bytes: upper limit of the file's size.
        progress: called with the bytes so far, and the total if the server sends it.
        on_retry: called with the reason before each wait.
        expected: the hash that the file must have; None: any.
        retry: timeouts and retries.

    Returns:
        The file's SHA-256 in lower-case hex.

    Raises:
        DownloadFailed: the file cannot be downloaded or written, is too large, or does not have the `expected` hash.
            `target` is unchanged. A partial file that can be resumed is kept; one with wrong content is removed.
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
                    f"{part.url} has SHA-256 {sha256}, but {expected.sha256} was {expected.origin}. The download is "
                    f"damaged or the file has changed: try again, or {_OTHER_SOURCE}. If its publisher confirms the "
                    "change, give the new hash with --sha256"
                )
            part.move_to_target()
    except OSError as error:
        raise DownloadFailed(
            f"cannot write {error.filename or target}: {error.strerror or error}; free some space, fix the "
            "permissions, or choose another --models-dir"
        ) from error
    return sha256


def public_url(url: str) -> str:
    """`url` without user, password and fragment, for logs and files. Raises DownloadFailed: not a URL."""
    return str(_address(url).copy_with(userinfo=b"", fragment=None))


def _address(url: str) -> httpx2.URL:
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise DownloadFailed(f"{url!r} is not a URL: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise DownloadFailed(f"{url!r} is not an http or https URL; `convmlp models import` reads a local file")
    return address


def _client(retry: RetryPolicy) -> httpx2.Client:
    try:
        return httpx2.Client(timeout=httpx2.Timeout(retry.read_timeout_s, connect=retry.connect_timeout_s))
    except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
        raise DownloadFailed(
            f"invalid proxy or certificates in the environment (HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE): {error}"
        ) from error


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Lock out other processes that download to `target`. The lock ends with the process; its file is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f"{target.name}.lock")
    for _ in range(MAX_LOCK_ATTEMPTS):
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                break
            # Another process may have removed the file between the two calls: its lock would lock nobody out.
            if os.fstat(file.fileno()).st_nlink == 0:
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)  # before the lock ends
            return
    raise DownloadFailed(f"another process is downloading {target}; try again when it has finished")


def _fetch(transfer: Transfer, retry: RetryPolicy, on_retry: Callable[[str], None]) -> None:
    """Complete the partial file, with retries. Raises DownloadFailed, OSError."""
    part = transfer.part
    before = furthest = part.size
    failures = 0
    for attempt in range(1, retry.max_attempts + 1):
        try:
            return transfer.attempt()
        except PermanentFailure as error:
            raise _failed(part, str(error)) from error
        except TransientFailure as error:
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if isinstance(error, Unreachable) and furthest == before:
                raise _failed(part, f"{error}; connect this machine, name a proxy with HTTPS_PROXY") from error
            wait_s = max(error.retry_after_s, retry.backoff_s(failures))
            if failures == retry.max_failures or attempt == retry.max_attempts:
                raise _failed(part, f"{error} (attempt {attempt}, the last); try again later") from error
            if wait_s > retry.max_backoff_s:
                raise _failed(
                    part, f"{error}; the server asks to retry after {wait_s:.0f} s; try again later"
                ) from error
            on_retry(f"{error}; retrying in {wait_s:.1f} s")
            retry.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _failed(part: PartialFile, reason: str) -> DownloadFailed:
    kept = f". {part.size} bytes are kept; the next run resumes there" if part.resumable else ""
    return DownloadFailed(f"cannot download {part.url}: {reason}, or {_OTHER_SOURCE}{kept}")


_HASHES = TypeAdapter(dict[str, Sha256])


class TrustedHashes:
    """The hashes in the JSON file `path`, created when needed. Several processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, url: str) -> ExpectedHash | None:
        """The hash recorded for `url`; None if there is none. Raises DownloadFailed: `path` is unreadable."""
        sha256 = self._read().get(public_url(url))
        origin = f"recorded in {self._path} at the first download"
        return ExpectedHash(sha256, origin) if sha256 is not None else None

    def record(self, url: str, sha256: str) -> None:
        """Record the hash for `url`. Raises DownloadFailed: `path` cannot be read or written."""
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
                f"cannot record the hash of {public_url(url)} in {self._path}: {error.strerror or error}; free some "
                "space, fix the permissions, or choose another --models-dir"
            ) from error

    def _read(self) -> dict[str, str]:
        try:
            return _HASHES.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            raise DownloadFailed(
                f"the recorded hashes in {self._path} cannot be read ({type(error).__name__}); expected a JSON object "
                "of URL and SHA-256: fix the file, or remove it to trust each file on its next download"
            ) from error
