"""One attempt of an HTTP download: request the missing bytes, append them to the partial file.

The bytes so far are in `FILE.part`; `FILE.part.json` has the version of the file that they belong to. Bytes are
appended only if the server confirms that version (RFC 9110, section 13.1.5), so two versions are never mixed.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO, Self

import httpx2
from pydantic import NonNegativeInt, ValidationError

from model.spec import Spec

_LENGTH = re.compile(r"[0-9]{1,18}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")
_STRONG_TAG = re.compile(r'"[!#-~]*"')


class FileVersion(Spec):
    """A version of a remote file, identified by its strong validators."""

    url: str
    total: NonNegativeInt | None
    etag: str | None
    last_modified: str | None

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str]) -> Self:
        """The version in a full response (200). Header names are in lower case."""
        length = _LENGTH.fullmatch(headers.get("content-length", ""))
        tag = _STRONG_TAG.fullmatch(headers.get("etag", ""))
        modified = headers.get("last-modified", "")
        age_s = seconds_between(modified, headers.get("date", ""))
        return cls(
            url=url,
            # Transfer-Encoding overrides Content-Length (RFC 9112, section 6.3).
            total=int(length[0]) if length and "transfer-encoding" not in headers else None,
            etag=tag[0] if tag else None,
            # A younger file may change again within the same second (RFC 9110, section 8.8.2.2).
            last_modified=modified if age_s is not None and age_s >= 1 and modified.isascii() else None,
        )

    @property
    def validator(self) -> str | None:
        return self.etag or self.last_modified

    def resumed_total(self, headers: Mapping[str, str], size: int) -> int | None:
        """The file's length if a partial response (206) continues this version at byte `size`; else None."""
        found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if found is None or int(found[1]) != size or self.total not in (None, int(found[2])):
            return None
        if self.etag is not None:
            same = headers.get("etag") == self.etag
        else:  # a response to If-Range may omit Last-Modified, not ETag (RFC 9110, section 15.3.7)
            same = headers.get("last-modified", self.last_modified) == self.last_modified
        return int(found[2]) if same else None


class PartialFile:
    """The partial file of `target`; it is empty unless it is of `url`. Methods raise OSError."""

    def __init__(self, target: Path, url: str) -> None:
        self._target = target
        self.url = url
        self.path = target.with_name(f"{target.name}.part")
        self._version_path = target.with_name(f"{target.name}.part.json")
        self.version = self._read_version()

    @property
    def size(self) -> int:
        """Bytes so far of `version`."""
        return self.path.stat().st_size if self.version is not None and self.path.exists() else 0

    @property
    def complete(self) -> bool:
        return self.version is not None and self.version.total == self.size > 0

    @property
    def resumable(self) -> bool:
        return self.version is not None and self.version.validator is not None and self.size > 0

    def range_headers(self) -> dict[str, str]:
        """Headers that request the rest if the file has not changed; empty if it must start over."""
        if self.version is None or self.version.validator is None or self.size == 0:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self.version.validator}

    def resumed_total(self, headers: Mapping[str, str]) -> int | None:
        """The file's length if a partial response (206) continues where this file ends; else None."""
        return self.version.resumed_total(headers, self.size) if self.version is not None else None

    def start(self, version: FileVersion) -> None:
        """Discard the bytes so far; the next ones are of `version`."""
        self.discard()
        # In this order: a partial file without a valid version file counts as empty.
        self._version_path.write_text(version.model_dump_json())
        self.version = version

    def open(self) -> BinaryIO:
        """Open for appending."""
        return self.path.open("ab")

    def discard(self) -> None:
        self._version_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.version = None

    def move_to_target(self) -> None:
        """Sync the file to disk, then rename it to `target`."""
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        self.path.replace(self._target)
        self._version_path.unlink(missing_ok=True)
        self.version = None

    def _read_version(self) -> FileVersion | None:
        try:
            version = FileVersion.model_validate_json(self._version_path.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return version if version.url == self.url else None


def seconds_between(earlier: str, later: str) -> float | None:
    """Seconds between two HTTP dates; None if one is not a date."""
    try:
        return (parsedate_to_datetime(later) - parsedate_to_datetime(earlier)).total_seconds()
    except (ValueError, TypeError, ArithmeticError):  # TypeError: one date has a time zone, the other has none
        return None


MAX_REDIRECTS = 5
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class TransientFailure(Exception):
    """The attempt failed; another may succeed, not before `retry_after_s` (0: the server named no time)."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Unreachable(TransientFailure):
    """There is no way to the host: its name has no address, or the network none to it. A lost network comes back, so
    it is transient; without a byte so far it is none that was lost."""


class PermanentFailure(Exception):
    """The attempt failed, and another would fail likewise."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """The download of one file; `attempt` may be called repeatedly."""

    client: httpx2.Client
    address: httpx2.URL
    part: PartialFile
    max_bytes: int
    progress: Callable[[int, int | None], None]
    hash_known: bool
    """If False, the response must mark its end, to know that the file is complete."""

    def attempt(self) -> None:
        """Complete the partial file. Raises TransientFailure, PermanentFailure, OSError."""
        if self.part.complete:
            return
        try:
            with self._response() as response:
                self._check_response(response)
                self._write(response)
        except httpx2.TimeoutException as error:
            raise TransientFailure(f"{self.address.host} timed out") from error
        except httpx2.ConnectError as error:
            if isinstance(_root(error), ssl.SSLCertVerificationError):
                raise PermanentFailure(
                    f"the certificate is not trusted ({error}); SSL_CERT_FILE can name other root certificates"
                ) from error
            if _is_unreachable(_root(error)):
                raise Unreachable(f"there is no network to {self.address.host} ({error})") from error
            raise TransientFailure(f"cannot connect to {self.address.host} ({error})") from error
        except httpx2.UnsupportedProtocol as error:
            raise PermanentFailure(f"it redirects to an unsupported address ({error})") from error
        except httpx2.TransportError as error:
            raise TransientFailure(f"{self.address.host} closed the connection ({error})") from error

    @contextmanager
    def _response(self) -> Iterator[httpx2.Response]:
        """Follow redirects here: httpx2 would read a redirect's body whatever its size."""
        headers = {"Accept-Encoding": "identity", **self.part.range_headers()}
        request = self.client.build_request("GET", self.address, headers=headers)
        for _ in range(MAX_REDIRECTS + 1):
            response = self.client.send(request, stream=True)
            try:
                if response.next_request is None:
                    yield response
                    return
            finally:
                response.close()
            if request.url.scheme == "https" and response.next_request.url.scheme == "http":
                raise PermanentFailure(f"it redirects from https to http (to {response.next_request.url.host})")
            request = response.next_request
        raise PermanentFailure(f"it redirects more than {MAX_REDIRECTS} times")

    def _check_response(self, response: httpx2.Response) -> None:
        """Check that the response is the file or a part of it."""
        status = f"{response.status_code} {response.reason_phrase}".strip()
        if response.status_code == 416:
            self.part.discard()
            raise TransientFailure(f"{response.url.host} does not have the requested range ({status})")
        if response.status_code in RETRIED_STATUSES:
            raise TransientFailure(f"{response.url.host} answered {status}", _retry_after_s(response.headers))
        if response.status_code in (404, 410):
            raise PermanentFailure(f"the file does not exist ({status})")
        if response.status_code not in (200, 206):
            raise PermanentFailure(f"{response.url.host} answered {status}")
        if response.headers.get("content-type", "").startswith("text/html"):
            raise PermanentFailure("the response is a web page, not a file")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise PermanentFailure(f"the response is encoded as {response.headers['content-encoding']}")
        if not self.hash_known and not {"content-length", "transfer-encoding"} & set(response.headers):
            raise PermanentFailure("the server does not send the file's length; give its hash with --sha256")

    def _write(self, response: httpx2.Response) -> None:
        """Append the response's body to the partial file."""
        if response.status_code == 200:
            version = FileVersion.of(self.part.url, response.headers)
            total = version.total
            self.part.start(version)
        else:
            total = self.part.resumed_total(response.headers)
            if total is None:
                self.part.discard()
                raise TransientFailure("the file has changed")
        size = self.part.size
        self._check_size(total or size)
        with self.part.open() as file:
            for chunk in response.iter_raw():
                size += len(chunk)
                self._check_size(size)
                file.write(chunk)
                self.progress(size, total)
        if total is not None and size != total:
            if size > total:
                self.part.discard()
            raise TransientFailure(f"the connection ended after {size} of {total} bytes")

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            self.part.discard()
            raise PermanentFailure(f"it has at least {size} bytes; the limit is {self.max_bytes}")


def _retry_after_s(headers: httpx2.Headers) -> float:
    """Seconds in Retry-After; 0 if there is none. A date is compared with the server's clock."""
    text = headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    return max(0.0, seconds_between(headers.get("date", ""), text) or 0.0)


def _is_unreachable(error: BaseException) -> bool:
    if isinstance(error, socket.gaierror):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
