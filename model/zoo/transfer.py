"""One attempt at a file over HTTP: ask for what is missing, and write what comes to the part file.

What has come so far is in `FILE.part`, and in `FILE.part.json` of which version it is. Bytes are appended only to a
part whose version the server confirms (RFC 9110, section 13.1.5), so that two versions are never glued together.
"""

from __future__ import annotations

import os
import re
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
    """One version of a file, as its server tells them apart. Only strong validators are kept."""

    url: str
    total: NonNegativeInt | None
    etag: str | None
    last_modified: str | None

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str]) -> Self:
        """The version that a whole response (200) with these headers, named in lower case, carries."""
        length = _LENGTH.fullmatch(headers.get("content-length", ""))
        tag = _STRONG_TAG.fullmatch(headers.get("etag", ""))
        modified = headers.get("last-modified", "")
        age_s = seconds_between(modified, headers.get("date", ""))
        return cls(
            url=url,
            # Chunks overrule a length (RFC 9112, section 6.3).
            total=int(length[0]) if length and "transfer-encoding" not in headers else None,
            etag=tag[0] if tag else None,
            # Else the file may have changed again within the same second (RFC 9110, section 8.8.2.2).
            last_modified=modified if age_s is not None and age_s >= 1 and modified.isascii() else None,
        )

    @property
    def validator(self) -> str | None:
        return self.etag or self.last_modified

    def resumed_total(self, headers: Mapping[str, str], size: int) -> int | None:
        """The file's length, if a partial response (206) is the rest of this version from byte `size` on; else None."""
        found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if found is None or int(found[1]) != size or self.total not in (None, int(found[2])):
            return None
        if self.etag is not None:
            same = headers.get("etag") == self.etag
        else:  # a response to If-Range may leave the date out, not the tag (RFC 9110, section 15.3.7)
            same = headers.get("last-modified", self.last_modified) == self.last_modified
        return int(found[2]) if same else None


class PartialFile:
    """The part that belongs to `target`; of `url`, else it counts as empty. Methods raise OSError."""

    def __init__(self, target: Path, url: str) -> None:
        self._target = target
        self.url = url
        self.path = target.with_name(f"{target.name}.part")
        self._version_path = target.with_name(f"{target.name}.part.json")
        self.version = self._read_version()

    @property
    def size(self) -> int:
        """Bytes at hand of `version`."""
        return self.path.stat().st_size if self.version is not None and self.path.exists() else 0

    @property
    def complete(self) -> bool:
        return self.version is not None and self.version.total == self.size > 0

    @property
    def resumable(self) -> bool:
        return self.version is not None and self.version.validator is not None and self.size > 0

    def range_headers(self) -> dict[str, str]:
        """Headers that ask for the rest, if the file is still the same one; none where all must come anew."""
        if self.version is None or self.version.validator is None or self.size == 0:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self.version.validator}

    def resumed_total(self, headers: Mapping[str, str]) -> int | None:
        """The file's length, if a partial response (206) goes on where the part ends; else None."""
        return self.version.resumed_total(headers, self.size) if self.version is not None else None

    def start(self, version: FileVersion) -> None:
        """Forget what there is; from now on the part is of `version`."""
        self.discard()
        # In this order: a part without a version, or one of a torn file, counts as empty.
        self._version_path.write_text(version.model_dump_json())
        self.version = version

    def open(self) -> BinaryIO:
        """To append."""
        return self.path.open("ab")

    def discard(self) -> None:
        self._version_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
        self.version = None

    def move_to_target(self) -> None:
        """The part becomes `target`, on stable storage before it has that name."""
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
    """From one HTTP date to another; None where one is no date."""
    try:
        return (parsedate_to_datetime(later) - parsedate_to_datetime(earlier)).total_seconds()
    except (ValueError, TypeError, ArithmeticError):  # of a date with a zone and one without, a TypeError
        return None


MAX_REDIRECTS = 5
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class TransientFailure(Exception):
    """The attempt came to nothing; another one may fare better, after `retry_after_s` if the server said so."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class PermanentFailure(Exception):
    """The attempt came to nothing, and another one would not fare better."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What the attempts at one file have in common."""

    client: httpx2.Client
    address: httpx2.URL
    part: PartialFile
    max_bytes: int
    progress: Callable[[int, int | None], None]
    hash_known: bool
    """Else only the server can tell whether the file is whole."""

    def attempt(self) -> None:
        """Make the part complete. Raises Interrupted, Refused, OSError."""
        if self.part.complete:
            return
        try:
            with self._response() as response:
                self._check_response(response)
                self._write(response)
        except httpx2.TimeoutException as error:
            raise TransientFailure(f"{self.address.host} fell silent") from error
        except httpx2.ConnectError as error:
            if isinstance(_root(error), ssl.SSLCertVerificationError):
                raise PermanentFailure(
                    f"the certificate is not trusted ({error}); SSL_CERT_FILE can name another root"
                ) from error
            raise TransientFailure(f"nothing answers at {self.address.host} ({error})") from error
        except httpx2.UnsupportedProtocol as error:
            raise PermanentFailure(f"it redirects to what is no web address ({error})") from error
        except httpx2.TransportError as error:
            raise TransientFailure(f"{self.address.host} broke off ({error})") from error

    @contextmanager
    def _response(self) -> Iterator[httpx2.Response]:
        """Redirects are followed here, not by httpx2, which would read a redirect's body whatever its size."""
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
        """That the response holds the file or a part of it."""
        status = f"{response.status_code} {response.reason_phrase}".strip()
        if response.status_code == 416:
            self.part.discard()
            raise TransientFailure(f"{response.url.host} has no such part of the file ({status})")
        if response.status_code in RETRIED_STATUSES:
            raise TransientFailure(f"{response.url.host} answered {status}", _retry_after_s(response.headers))
        if response.status_code in (404, 410):
            raise PermanentFailure(f"the file is not there ({status})")
        if response.status_code not in (200, 206):
            raise PermanentFailure(f"{response.url.host} does not give the file ({status})")
        if response.headers.get("content-type", "").startswith("text/html"):
            raise PermanentFailure("a web page came, not a file")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise PermanentFailure(
                f"it came encoded as {response.headers['content-encoding']}, which was not asked for"
            )
        if not self.hash_known and not {"content-length", "transfer-encoding"} & set(response.headers):
            raise PermanentFailure("the server does not tell where the file ends; give its hash with --sha256")

    def _write(self, response: httpx2.Response) -> None:
        """Write the response to the part, up to its end."""
        if response.status_code == 200:
            version = FileVersion.of(self.part.url, response.headers)
            total = version.total
            self.part.start(version)
        else:
            total = self.part.resumed_total(response.headers)
            if total is None:
                self.part.discard()
                raise TransientFailure("the file changed meanwhile")
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
            raise TransientFailure(f"{size} bytes came of a file of {total}")

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            self.part.discard()
            raise PermanentFailure(f"it has {size} bytes or more, the bound is {self.max_bytes}; is it the right file?")


def _retry_after_s(headers: httpx2.Headers) -> float:
    """Seconds; 0 where the server names no time. A date is set against the server's own clock."""
    text = headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    return max(0.0, seconds_between(headers.get("date", ""), text) or 0.0)


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
