"""What the REST transport (`rest.py`) and the gRPC transport (`grpc.py`) have in common: interface and configuration.

Both give equal results and errors.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

from convmlp_client.parameters import PredictParams
from convmlp_client.results import AnyResult, Model

R = TypeVar("R", bound=AnyResult)
R_co = TypeVar("R_co", bound=AnyResult, covariant=True)

MAX_RESPONSE_BYTES = 256 * 2**20
"""More than the masks of a response take as PNG. The limit is for responses without an end."""
CONNECT_TIMEOUT_S = 10.0
DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 443}

StrPath = str | os.PathLike[str]
Compression = Literal["gzip", "deflate"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a request. `timeout_s` is the time that remains; None: the service's own limit applies."""

    request_id: str
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class TransportConfig:
    """The arguments of a transport. `max_concurrency` bounds the connections."""

    url: SplitResult
    api_key: str | None
    user_agent: str
    max_concurrency: int
    ca_file: StrPath | None
    client_certificate: tuple[StrPath, StrPath] | None
    compression: Compression | None

    @property
    def address(self) -> str:
        """The URL without user name and password, for messages."""
        return self.url._replace(netloc=self.url.netloc.rpartition("@")[2]).geturl()

    @property
    def secure(self) -> bool:
        return self.url.scheme in ("https", "grpcs")


def cannot_connect(address: str, reason: str) -> str:
    """The detail of an error: no connection to a URL, and why. A port that the URL leaves out is named."""
    url = urlsplit(address)
    port = f" (port {DEFAULT_PORTS[url.scheme]})" if url.port is None else ""
    return f"cannot connect to {address}{port}: {reason}"


class ImageStream(Protocol[R_co]):
    """Predictions for many images with the same parameters."""

    async def predict(self, image: bytes, attempt: Attempt) -> R_co:
        """The result for one encoded image. Raises ClientError."""
        ...

    async def aclose(self) -> None:
        """Close the stream and cancel its requests."""
        ...


class Transport(Protocol):
    """A connection to a service. It connects at the first request and belongs to that event loop.

    All methods raise ClientError. The caller enforces the timeout.
    """

    async def predict(self, params: PredictParams[R], image: bytes, attempt: Attempt) -> R:
        """The result for one encoded image."""
        ...

    def open_stream(self, params: PredictParams[R]) -> ImageStream[R]: ...

    async def models(self, attempt: Attempt) -> tuple[Model, ...]: ...

    async def ready(self, attempt: Attempt) -> bool: ...

    async def aclose(self) -> None: ...


def parse_url(url: str) -> SplitResult:
    """The parts of a service's URL.

    Raises:
        ValueError: `url` is not an http://, https://, grpc:// or grpcs:// URL with a host, or has a query, a fragment,
            or (gRPC) a path.
    """
    expected = "expected http://HOST:PORT, https://HOST, grpc://HOST:PORT or grpcs://HOST"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is not a URL: {error}; {expected}") from None
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not host:
        raise ValueError(f"{url!r} is not the URL of a service; {expected}")
    if parts.query or parts.fragment or (parts.scheme.startswith("grpc") and parts.path.strip("/")):
        raise ValueError(f"{url!r} has more parts than the URL of a service; {expected}")
    return parts


def connection_reason(error: BaseException) -> str:
    """Why a connection failed, in the words of the system or of TLS; the error's own text where there are none.

    HTTP clients raise errors of their own, such as "All connection attempts failed", from those that have the reason.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BaseExceptionGroup):  # of the addresses of a host
            cause = cause.exceptions[0]
            continue
        if isinstance(cause, ssl.SSLError):
            reason = getattr(cause, "verify_message", "") or (cause.reason or str(cause)).replace("_", " ")
            return f"TLS: {reason.lower()}"
        if isinstance(cause, OSError) and cause.errno is not None:
            # asyncio puts addresses into its text; the numbers of a resolver's errors are negative.
            return (os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)).lower()
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
