"""Answers of the HTTP server itself, where there is no request that the application could answer.

They are problem+json, as all errors are. Each ends its connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from http import HTTPMethod, HTTPStatus

import httptools
import msgspec

from service.errors import ConnectionEnd
from service.frontend.core.request_log import usable_id
from service.frontend.http.problems import PROBLEM_MEDIA_TYPE, problem

MAX_HEAD_BYTES = 64 * 2**10
"""Request line and headers together."""
IS_HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*").fullmatch
"""Whether a Host header has only characters of a host and a port (RFC 9110, section 7.2)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """`end` is for the metrics; `code` is the last part of the problem's type."""

    end: ConnectionEnd
    code: str
    status: HTTPStatus
    title: str
    detail: str
    retry_after_s: int | None = None

    def response(self) -> bytes:
        """The whole response, with a request id of its own."""
        request_id = usable_id("")
        body = msgspec.json.encode(problem(self.code, self.status, self.title, self.detail, f"#{request_id}"))
        retry = "" if self.retry_after_s is None else f"retry-after: {self.retry_after_s}\r\n"
        head = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}\r\n"
            f"content-type: {PROBLEM_MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n{retry}"
            f"x-content-type-options: nosniff\r\nx-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        return head.encode("ascii") + body


HEAD_TOO_LARGE = Refusal(
    ConnectionEnd.HEAD_TOO_LARGE,
    "head-too-large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "The request's head is too large",
    f"the request line and the headers have more than {MAX_HEAD_BYTES:,} bytes; send images in the body",
)
HEAD_TIMEOUT = Refusal(
    ConnectionEnd.HEAD_TIMEOUT,
    "head-timeout",
    HTTPStatus.REQUEST_TIMEOUT,
    "The request's head did not arrive in time",
    "no complete request line and headers arrived in time; send them at once, and the body after them",
)
TOO_MUCH_PIPELINED = Refusal(
    ConnectionEnd.PIPELINED,
    "overloaded",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The service is overloaded",
    "too many requests wait behind unanswered ones of the same connections; read answers before sending more",
    retry_after_s=1,
)
CONNECT = Refusal(
    ConnectionEnd.MALFORMED,
    "method-not-allowed",
    HTTPStatus.NOT_IMPLEMENTED,
    "Method not implemented",
    "CONNECT is for proxies, and this service is none; see /docs",
)
HOST = Refusal(
    ConnectionEnd.MALFORMED,
    "malformed-request",
    HTTPStatus.BAD_REQUEST,
    "The request is not valid HTTP",
    "a request of HTTP/1.1 has exactly one Host header, with a host and, where needed, a port (RFC 9112, section 3.2)",
)
TRANSFER_CODING = Refusal(
    ConnectionEnd.MALFORMED,
    "transfer-coding",
    HTTPStatus.NOT_IMPLEMENTED,
    "Transfer coding not implemented",
    "the only transfer coding of request bodies is `chunked`; name a compression in Content-Encoding instead",
)
VERSION = Refusal(
    ConnectionEnd.MALFORMED,
    "http-version",
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    "HTTP version not supported",
    "this port takes HTTP/1.1 and HTTP/1.0; gRPC has a port of its own",
)
_METHODS = ("Invalid method encountered", "Expected space after method")
"""llhttp's reasons for a method that it does not know, and for what is no HTTP at all."""
_request_lines = re.compile(rb"(?:\A|\r\n\r\n)([!#$%&'*+.^_`|~\w-]{1,40}) [!-~]+ HTTP/1\.[01]\r\n").findall
_KNOWN_METHODS = frozenset(method.encode("ascii") for method in HTTPMethod)
_VERSIONS = ("Invalid HTTP version", "Pause on PRI/Upgrade")
"""llhttp's reasons for a request of another version; the second is HTTP/2's preface."""


class RefusedHead(Exception):
    """Raised in a callback of the parser: the request's head is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


def check_head(headers: Iterable[tuple[bytes, bytes]], version: str) -> int:
    """Check what the parser leaves unchecked. Returns the body's length in bytes; 0 where there is none, or chunks.

    Raises:
        RefusedHead: another version, Host header or transfer coding.
    """
    if version not in ("1.0", "1.1"):
        raise RefusedHead(VERSION)
    hosts = nbytes = 0
    for name, value in headers:
        if name == b"content-length":
            nbytes = int(value)
        elif name == b"host":
            hosts += 1 if IS_HOST(value) else 2
        elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
            # The parser would drop other codings before it, such as gzip.
            raise RefusedHead(TRANSFER_CODING)
    if hosts != 1 and (hosts or version != "1.0"):
        raise RefusedHead(HOST)
    return nbytes


def _unknown_method(method: str) -> Refusal:
    return replace(CONNECT, detail=f"the method {method!r} is not implemented; upper and lower case differ; see /docs")


def malformed(error: httptools.HttpParserError, data: bytes | memoryview) -> Refusal:
    """The refusal of what the parser, or one of its callbacks, does not accept in `data`."""
    if isinstance(error.__context__, RefusedHead):
        return error.__context__.refusal
    reason = str(error)
    if reason in _VERSIONS:
        return VERSION
    if reason in _METHODS and (unknown := [one for one in _request_lines(data) if one not in _KNOWN_METHODS]):
        return _unknown_method(unknown[-1].decode("ascii"))
    if isinstance(error, httptools.HttpParserCallbackError):  # it has no reason of its own
        reason = "the request's target is not a valid path"
    if "-" not in reason.split(" ", 1)[0]:  # a header's name keeps its capital
        reason = reason[:1].lower() + reason[1:]
    return Refusal(
        ConnectionEnd.MALFORMED,
        "malformed-request",
        HTTPStatus.BAD_REQUEST,
        "The request is not valid HTTP",
        f"the request is not valid HTTP/1.1 (RFC 9112): {reason}",
    )
