"""One attempt at a file over HTTP: ask for what is missing, and write what comes to the part file."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2

from model.zoo.part import PartFile, Version, seconds_between

MAX_REDIRECTS = 5
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


class Interrupted(Exception):
    """The attempt came to nothing; another one may fare better, after `retry_after_s` if the server said so."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """The attempt came to nothing, and another one would not fare better."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What the attempts at one file have in common."""

    client: httpx2.Client
    address: httpx2.URL
    part: PartFile
    max_bytes: int
    progress: Callable[[int, int | None], None]
    hash_known: bool
    """Else only the server can tell whether the file is whole."""

    def attempt(self) -> None:
        """Make the part complete. Raises Interrupted, Refused, OSError."""
        if self.part.complete:
            return
        try:
            with self._answer() as answer:
                self._check(answer)
                self._take(answer)
        except httpx2.TimeoutException as error:
            raise Interrupted(f"{self.address.host} fell silent") from error
        except httpx2.ConnectError as error:
            if isinstance(_root(error), ssl.SSLCertVerificationError):
                raise Refused(
                    f"the certificate is not trusted ({error}); SSL_CERT_FILE can name another root"
                ) from error
            raise Interrupted(f"nothing answers at {self.address.host} ({error})") from error
        except httpx2.UnsupportedProtocol as error:
            raise Refused(f"it redirects to what is no web address ({error})") from error
        except httpx2.TransportError as error:
            raise Interrupted(f"{self.address.host} broke off ({error})") from error

    @contextmanager
    def _answer(self) -> Iterator[httpx2.Response]:
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
                raise Refused(f"it redirects from https to http (to {response.next_request.url.host})")
            request = response.next_request
        raise Refused(f"it redirects more than {MAX_REDIRECTS} times")

    def _check(self, answer: httpx2.Response) -> None:
        """That the answer holds the file or a part of it."""
        status = f"{answer.status_code} {answer.reason_phrase}".strip()
        if answer.status_code == 416:
            self.part.discard()
            raise Interrupted(f"{answer.url.host} has no such part of the file ({status})")
        if answer.status_code in RETRIED_STATUSES:
            raise Interrupted(f"{answer.url.host} answered {status}", _retry_after_s(answer.headers))
        if answer.status_code in (404, 410):
            raise Refused(f"the file is not there ({status})")
        if answer.status_code not in (200, 206):
            raise Refused(f"{answer.url.host} does not give the file ({status})")
        if answer.headers.get("content-type", "").startswith("text/html"):
            raise Refused("a web page came, not a file")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise Refused(f"it came encoded as {answer.headers['content-encoding']}, which was not asked for")
        if not self.hash_known and not {"content-length", "transfer-encoding"} & set(answer.headers):
            raise Refused("the server does not tell where the file ends; give its hash with --sha256")

    def _take(self, answer: httpx2.Response) -> None:
        """Write the answer to the part, up to its end."""
        if answer.status_code == 200:
            version = Version.of(self.part.url, answer.headers)
            total = version.total
            self.part.begin(version)
        else:
            total = self.part.continued_total(answer.headers)
            if total is None:
                self.part.discard()
                raise Interrupted("the file changed meanwhile")
        size = self.part.size
        self._check_size(total or size)
        with self.part.open() as file:
            for chunk in answer.iter_raw():
                size += len(chunk)
                self._check_size(size)
                file.write(chunk)
                self.progress(size, total)
        if total is not None and size != total:
            if size > total:
                self.part.discard()
            raise Interrupted(f"{size} bytes came of a file of {total}")

    def _check_size(self, size: int) -> None:
        if size > self.max_bytes:
            self.part.discard()
            raise Refused(f"it has {size} bytes or more, the bound is {self.max_bytes}; is it the right file?")


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
