"""The errors of HTTP answers: problem+json (RFC 9457) as the service writes it, and what others write instead."""

from __future__ import annotations

import http
from collections.abc import Mapping
from dataclasses import dataclass

import httpx2
import msgspec

from convmlp_client.errors import (
    SERVICE_ERRORS,
    ClientError,
    DeadlineExceeded,
    Forbidden,
    Internal,
    ProtocolError,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

PROBLEM_MEDIA_TYPE = "application/problem+json"

ERRORS_OF_PROXIES: Mapping[int, type[ClientError]] = {
    401: Unauthenticated,
    403: Forbidden,
    413: TooLarge,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
"""What stands between here and the service has its own words for these, but means the same."""


class _Problem(msgspec.Struct):
    type: str
    detail: str


@dataclass(frozen=True, slots=True)
class Received:
    """An HTTP answer that came whole, its body decoded."""

    status: int
    headers: httpx2.Headers
    body: bytes

    @property
    def media_type(self) -> str:
        media_type: str = self.headers.get("content-type", "")
        return media_type.partition(";")[0].strip().lower()


def error_of(response: Received, address: str, request_id: str) -> ClientError:
    """The error that an answer tells of; ProtocolError where it is none of this service's."""
    kind, code, detail = _kind_of(response, address)
    error = kind(
        detail,
        request_id=response.headers.get("x-request-id", request_id),
        retry_after_s=_seconds(response.headers.get("retry-after", "")),
    )
    if code is not None:
        error.code = code
    return error


def _kind_of(response: Received, address: str) -> tuple[type[ClientError], str | None, str]:
    """The error's class, its code if the service told one, and the words for it."""
    problem = _problem(response)
    status = response.status
    if problem is None:
        kind = ERRORS_OF_PROXIES.get(status, ProtocolError)
        to = f" (to {response.headers['location']})" if "location" in response.headers else ""
        return kind, None, f"{address} answered {status} {_phrase(status)}{to}, not as this service does"
    _, _, code = problem.type.rpartition("/")
    if code in SERVICE_ERRORS:
        return SERVICE_ERRORS[code], code, problem.detail
    # A path that is not there is no answer to any question; other codes are those of a later version.
    kind = ProtocolError if status in (404, 405) else ERRORS_OF_PROXIES.get(status, Internal)
    return kind, code, f"{address}: {problem.detail}"


def _problem(response: Received) -> _Problem | None:
    if response.media_type != PROBLEM_MEDIA_TYPE:
        return None
    try:
        return msgspec.json.decode(response.body, type=_Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "(no status of HTTP)"


def _seconds(text: str) -> float | None:
    """Retry-After in seconds; dates, which the service does not write, are passed over."""
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None
