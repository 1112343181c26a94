"""The service over HTTP: an image as the body of a request, on connections that are kept."""

from __future__ import annotations

import http
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlencode

import httpx2
import msgspec

from convmlp_client.convert import result_from_json
from convmlp_client.errors import (
    SERVICE_ERRORS,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    Forbidden,
    Internal,
    ProtocolError,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from convmlp_client.parameters import Question
from convmlp_client.results import Meta, Model, Result
from convmlp_client.transport import CONNECT_S, MAX_ANSWER_BYTES, Call, Setup

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


R = TypeVar("R", bound=Result)
T = TypeVar("T")

KEPT_S = 30.0
"""An idle connection is closed before a load balancer drops it without a word."""
LONGEST_TIMEOUT_MS = 10**9
"""That the service takes."""


class _Answer(msgspec.Struct):
    model: str
    results: list[msgspec.Raw]


class _Models(msgspec.Struct):
    models: tuple[Model, ...]


class RestTransport:
    def __init__(self, setup: Setup) -> None:
        """Raises ValueError where the host's name cannot be one, OSError where a certificate cannot be read."""
        self._address = setup.address
        try:
            base_url = httpx2.URL(setup.url.geturl())
        except httpx2.InvalidURL as error:
            raise ValueError(f"{self._address!r} is not a URL: {error}") from None
        headers = {"User-Agent": setup.user_agent, "Accept": "application/json"}
        if setup.api_key is not None:
            headers["Authorization"] = f"Bearer {setup.api_key}"
        connections = httpx2.Limits(
            max_connections=setup.max_concurrency,
            max_keepalive_connections=setup.max_concurrency,
            keepalive_expiry=KEPT_S,
        )
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            headers=headers,
            limits=connections,
            # The deadline of a whole request is kept by whoever asks.
            timeout=httpx2.Timeout(None, connect=CONNECT_S),
            verify=_tls(setup),
        )

    async def predict(self, question: Question[R], image: bytes, call: Call) -> R:
        query = _query_string(question.parameters)
        response = await self._send("POST", f"/{question.task.value}{query}", call, image)
        answer = self._decoded(response, _Answer)
        if len(answer.results) != 1:
            raise ProtocolError(f"{self._address} gave {len(answer.results)} results for one image")
        meta = Meta(
            model=answer.model,
            task=question.task,
            request_id=response.headers.get("x-request-id", ""),
            timings_ms=_timings_ms(response.headers.get("server-timing", "")),
        )
        try:
            result = result_from_json(answer.results[0], meta)
        except msgspec.DecodeError as error:
            raise self._other_form(error) from error
        assert isinstance(result, question.answer)
        return result

    def session(self, question: Question[R]) -> RestSession[R]:
        return RestSession(self, question)

    async def models(self, call: Call) -> tuple[Model, ...]:
        return self._decoded(await self._send("GET", "/models", call), _Models).models

    async def ready(self, call: Call) -> bool:
        try:
            await self._send("GET", "/readyz", call)
        except Unavailable:
            return False
        return True

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _send(self, method: str, path: str, call: Call, content: bytes | None = None) -> Received:
        """A successful answer of JSON.

        Raises:
            ClientError: the service's own, or none came.
        """
        headers = {"X-Request-Id": call.request_id}
        if content is not None:
            headers["Content-Type"] = "application/octet-stream"
        if call.timeout_s is not None:
            timeout_ms = min(max(1, round(call.timeout_s * 1000)), LONGEST_TIMEOUT_MS)
            headers["X-Request-Timeout-Ms"] = str(timeout_ms)
        try:
            async with self._http.stream(method, path, content=content, headers=headers) as response:
                received = await self._read(response)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            reason = str(error) or f"none within {CONNECT_S:g} s"
            raise ConnectionFailed(f"no connection to {self._address}: {reason}", request_id=call.request_id) from error
        except httpx2.DecodingError as error:
            raise self._other_form(error) from error
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ConnectionFailed(
                f"{self._address} broke off before its answer: {reason}", request_id=call.request_id
            ) from error
        if 200 <= received.status < 300 and received.media_type == "application/json":
            return received
        raise error_of(received, self._address, call.request_id)

    async def _read(self, response: httpx2.Response) -> Received:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise ProtocolError(f"{self._address} gives an answer of more than {MAX_ANSWER_BYTES:,} bytes")
        return Received(response.status_code, response.headers, bytes(body))

    def _decoded(self, response: Received, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(response.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._other_form(error) from error

    def _other_form(self, error: Exception) -> ProtocolError:
        return ProtocolError(f"{self._address} answered something else than this service does: {error}")


@dataclass(frozen=True, slots=True)
class RestSession(Generic[R]):
    """Requests of their own: HTTP has nothing better for many images that come one by one."""

    transport: RestTransport
    question: Question[R]

    async def predict(self, image: bytes, call: Call) -> R:
        return await self.transport.predict(self.question, image, call)

    async def aclose(self) -> None:
        """Nothing outlasts a request."""


def _tls(setup: Setup) -> ssl.SSLContext | bool:
    if setup.ca_file is None and setup.client_certificate is None:
        return True
    context = httpx2.create_ssl_context() if setup.ca_file is None else ssl.create_default_context(cafile=setup.ca_file)
    if setup.client_certificate is not None:
        context.load_cert_chain(*setup.client_certificate)
    return context


def _query_string(parameters: Mapping[str, object]) -> str:
    if not parameters:
        return ""
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in parameters.items()}
    return f"?{urlencode(texts)}"


def _timings_ms(header: str) -> dict[str, float]:
    """What Server-Timing tells, as `decode;dur=1.25, queue;dur=0.5`; other entries are passed over."""
    timings: dict[str, float] = {}
    for entry in header.split(","):
        name, _, value = entry.strip().partition(";dur=")
        try:
            timings[name] = float(value)
        except ValueError:
            continue
    return timings
