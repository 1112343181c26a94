"""The REST transport: one HTTP request per image, on persistent connections."""

from __future__ import annotations

import http
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, TypeVar
from urllib.parse import urlencode

import httpx2
import msgspec

from convmlp_client.convert import ProblemJSON, answer_from_json, result_from_json
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
from convmlp_client.geometry import ImageSize
from convmlp_client.parameters import PredictParams
from convmlp_client.results import Analysis, Answer, AnyResult, Meta, Model, Task
from convmlp_client.transport import (
    CONNECT_TIMEOUT_S,
    MAX_RESPONSE_BYTES,
    Attempt,
    TransportConfig,
    cannot_connect,
    connection_reason,
)

R = TypeVar("R", bound=AnyResult)
T = TypeVar("T")

KEEPALIVE_EXPIRY_S: Final = 30.0
"""Idle connections are closed before load balancers drop them silently."""
MAX_TIMEOUT_MS: Final = 10**9
"""The longest timeout that the service accepts."""
PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
PROXY_ERRORS: Final[Mapping[int, type[ClientError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    413: TooLarge,
    429: RateLimited,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
"""The errors of HTTP statuses without the service's own problem document, such as those of a reverse proxy."""


class _ResultsJSON(msgspec.Struct):
    model: str
    results: list[msgspec.Raw]


class _ModelsJSON(msgspec.Struct):
    models: tuple[Model, ...]


class _PostprocessingJSON(msgspec.Struct, frozen=True):
    score_threshold: float = 0.0


class _PostprocessedJSON(msgspec.Struct, frozen=True):
    postprocessing: _PostprocessingJSON = _PostprocessingJSON()


class _ThresholdsJSON(msgspec.Struct):
    """What `_ModelsJSON` lacks of the same document: 0 is no threshold."""

    models: tuple[_PostprocessedJSON, ...]


class _AnalysisJSON(msgspec.Struct):
    image: ImageSize
    answers: dict[str, msgspec.Raw]


class _AnalysesJSON(msgspec.Struct):
    models: dict[str, str]
    results: list[_AnalysisJSON]


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete HTTP response with its decoded body."""

    status: int
    headers: httpx2.Headers
    body: bytes

    @property
    def media_type(self) -> str:
        media_type: str = self.headers.get("content-type", "")
        return media_type.partition(";")[0].strip().lower()


class RestTransport:
    """Implements `Transport` over HTTP."""

    def __init__(self, config: TransportConfig) -> None:
        """Raises ValueError for an invalid host name, OSError if a certificate cannot be read."""
        self._address = config.address
        try:
            base_url = httpx2.URL(config.url.geturl())
        except httpx2.InvalidURL as error:
            raise ValueError(f"{self._address!r} is not a URL: {error}") from None
        headers = {"User-Agent": config.user_agent, "Accept": "application/json"}
        if config.api_key is not None:
            headers["Authorization"] = f"Bearer {config.api_key}"
        limits = httpx2.Limits(
            max_connections=config.max_concurrency,
            max_keepalive_connections=config.max_concurrency,
            keepalive_expiry=KEEPALIVE_EXPIRY_S,
        )
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            headers=headers,
            limits=limits,
            # The caller enforces the timeout of the whole request.
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            verify=_tls_verify(config),
        )

    async def predict(self, params: PredictParams[R], image: bytes, attempt: Attempt) -> R:
        result: AnyResult
        if params.task is Task.ANALYZE:
            result = await self._analyze(params.values, image, attempt)
        else:
            result = await self._predict(params, image, attempt)
        assert isinstance(result, params.result_type)
        return result

    async def _predict(self, params: PredictParams[AnyResult], image: bytes, attempt: Attempt) -> AnyResult:
        # As base64 a vector is a quarter as long.
        encoding = {"encoding": "base64"} if params.task is Task.EMBED else {}
        query = _query_string({**params.values, **encoding})
        response = await self._request("POST", f"/{params.task.value}{query}", attempt, image)
        content = self._decode(response, _ResultsJSON)
        result_json = self._only(content.results)
        try:
            return result_from_json(result_json, _meta(response, content.model, params.task))
        except msgspec.DecodeError as error:
            raise self._unexpected_response(error) from error

    async def _analyze(self, values: Mapping[str, Any], image: bytes, attempt: Attempt) -> Analysis:
        texts = {name: ",".join(value) if name in ("tasks", "models") else value for name, value in values.items()}
        response = await self._request("POST", f"/analyze{_query_string(texts)}", attempt, image)
        content = self._decode(response, _AnalysesJSON)
        result, meta = self._only(content.results), _meta(response, "", Task.ANALYZE)
        answers: dict[str, Answer | ClientError] = {}
        try:
            for name, answer in result.answers.items():
                found = answer_from_json(answer, replace(meta, model=content.models.get(name, "")))
                if isinstance(found, ProblemJSON):
                    answers[name] = _error_of_problem(found, found.status, self._address, meta.request_id)
                else:
                    answers[name] = found
        except msgspec.DecodeError as error:
            raise self._unexpected_response(error) from error
        return Analysis(result.image, answers, content.models, meta)

    def open_stream(self, params: PredictParams[R]) -> RestImageStream[R]:
        return RestImageStream(self, params)

    async def models(self, attempt: Attempt) -> tuple[Model, ...]:
        response = await self._request("GET", "/models", attempt)
        models = self._decode(response, _ModelsJSON).models
        thresholds = (one.postprocessing.score_threshold for one in self._decode(response, _ThresholdsJSON).models)
        return tuple(
            replace(model, score_threshold=threshold or None)
            for model, threshold in zip(models, thresholds, strict=True)
        )

    async def ready(self, attempt: Attempt) -> bool:
        try:
            await self._request("GET", "/readyz", attempt)
        except Unavailable:
            return False
        return True

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _request(self, method: str, path: str, attempt: Attempt, content: bytes | None = None) -> HttpResponse:
        """A successful JSON response.

        Raises:
            ClientError: the service's error, or there was no valid response.
        """
        headers = {"X-Request-Id": attempt.request_id}
        if content is not None:
            headers["Content-Type"] = "application/octet-stream"
        if attempt.timeout_s is not None:
            timeout_ms = min(max(1, round(attempt.timeout_s * 1000)), MAX_TIMEOUT_MS)
            headers["X-Request-Timeout-Ms"] = str(timeout_ms)
        try:
            async with self._http.stream(method, path, content=content, headers=headers) as response:
                received = await self._read(response)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            timed_out = isinstance(error, httpx2.ConnectTimeout)
            reason = f"timed out after {CONNECT_TIMEOUT_S:g} s" if timed_out else connection_reason(error)
            detail = cannot_connect(self._address, reason)
            raise ConnectionFailed(detail, request_id=attempt.request_id) from error
        except httpx2.DecodingError as error:
            raise self._unexpected_response(error) from error
        except httpx2.TransportError as error:
            detail = f"the connection to {self._address} broke before the reply: {str(error) or type(error).__name__}"
            raise ConnectionFailed(detail, request_id=attempt.request_id) from error
        if 200 <= received.status < 300 and received.media_type == "application/json":
            return received
        raise error_from_response(received, self._address, attempt.request_id)

    async def _read(self, response: httpx2.Response) -> HttpResponse:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_RESPONSE_BYTES:
                raise ProtocolError(f"the response of {self._address} is larger than {MAX_RESPONSE_BYTES:,} bytes")
        return HttpResponse(response.status_code, response.headers, bytes(body))

    def _decode(self, response: HttpResponse, schema: type[T]) -> T:
        try:
            return msgspec.json.decode(response.body, type=schema)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._unexpected_response(error) from error

    def _only(self, results: list[T]) -> T:
        if len(results) != 1:
            raise ProtocolError(f"{self._address} returned {len(results)} results, expected 1")
        return results[0]

    def _unexpected_response(self, error: Exception) -> ProtocolError:
        return ProtocolError(f"the response of {self._address} is not one of this service: {error}")


def _meta(response: HttpResponse, model: str, task: Task) -> Meta:
    return Meta(
        model=model,
        task=task,
        request_id=response.headers.get("x-request-id", ""),
        timings_ms=_parse_server_timing(response.headers.get("server-timing", "")),
        precision=response.headers.get("x-model-precision", ""),
    )


@dataclass(frozen=True, slots=True)
class RestImageStream(Generic[R]):
    """Implements `ImageStream` with one request per image."""

    transport: RestTransport
    params: PredictParams[R]

    async def predict(self, image: bytes, attempt: Attempt) -> R:
        return await self.transport.predict(self.params, image, attempt)

    async def aclose(self) -> None:
        """There is nothing to close."""


def error_from_response(response: HttpResponse, address: str, request_id: str) -> ClientError:
    """The error of a response that is not a success; ProtocolError if the response is not from this service."""
    status = response.status
    request_id = response.headers.get("x-request-id", request_id)
    retry_after_s = _parse_retry_after(response.headers.get("retry-after", ""))
    if (problem := _decode_problem(response)) is not None:
        return _error_of_problem(problem, status, address, request_id, retry_after_s)
    location = f" (to {response.headers['location']})" if "location" in response.headers else ""
    detail = f"{address} returned {status} {_reason_phrase(status)}{location}, which is not a reply of this service"
    return PROXY_ERRORS.get(status, ProtocolError)(detail, request_id=request_id, retry_after_s=retry_after_s)


def _error_of_problem(
    problem: ProblemJSON, status: int, address: str, request_id: str, retry_after_s: float | None = None
) -> ClientError:
    """The service's own error, with its code."""
    code = problem.type.rpartition("/")[2]
    if code in SERVICE_ERRORS:
        error_type, detail = SERVICE_ERRORS[code], problem.detail
    else:
        # An unknown path means a wrong URL. Other unknown codes are those of a newer service.
        error_type = ProtocolError if status in (404, 405) else PROXY_ERRORS.get(status, Internal)
        detail = f"{address}: {problem.detail}"
    error = error_type(detail, request_id=request_id, retry_after_s=retry_after_s)
    error.code = code
    return error


def _decode_problem(response: HttpResponse) -> ProblemJSON | None:
    if response.media_type != PROBLEM_MEDIA_TYPE:
        return None
    try:
        return msgspec.json.decode(response.body, type=ProblemJSON)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _reason_phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "(not an HTTP status)"


def _parse_retry_after(text: str) -> float | None:
    """Retry-After in seconds. Dates are ignored, because the service does not write them."""
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _parse_server_timing(header: str) -> dict[str, float]:
    """Milliseconds by stage from Server-Timing, such as `decode;dur=1.25, queue;dur=0.5`. Other entries are ignored."""
    timings_ms: dict[str, float] = {}
    for entry in header.split(","):
        name, _, value = entry.strip().partition(";dur=")
        try:
            timings_ms[name] = float(value)
        except ValueError:
            continue
    return timings_ms


def _query_string(parameters: Mapping[str, object]) -> str:
    if not parameters:
        return ""
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in parameters.items()}
    return f"?{urlencode(texts)}"


def _tls_verify(config: TransportConfig) -> ssl.SSLContext | bool:
    if config.ca_file is None and config.client_certificate is None:
        return True
    if config.ca_file is None:
        context = httpx2.create_ssl_context()
    else:
        context = ssl.create_default_context(cafile=config.ca_file)
    if config.client_certificate is not None:
        context.load_cert_chain(*config.client_certificate)
    return context
