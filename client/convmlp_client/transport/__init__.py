"""How a question reaches the service: REST (`rest.py`) or gRPC (`rpc.py`), which give the same answers and errors."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

from convmlp_client.parameters import Question
from convmlp_client.results import Model, Result

R = TypeVar("R", bound=Result)
R_co = TypeVar("R_co", bound=Result, covariant=True)

MAX_ANSWER_BYTES = 256 * 2**20
"""More than masks take as PNG files; the bound is for what has no end."""
CONNECT_S = 10.0
"""For the connection itself, which either comes soon or not at all."""

StrPath = str | os.PathLike[str]
Compression = Literal["gzip", "deflate"]


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt. `timeout_s` is what is left of the caller's time; None: the service's own limit holds."""

    request_id: str
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Setup:
    """What a transport is made of. `max_concurrency`: requests at a time, for which it may need connections."""

    url: SplitResult
    api_key: str | None
    user_agent: str
    max_concurrency: int
    ca_file: StrPath | None
    client_certificate: tuple[StrPath, StrPath] | None
    compression: Compression | None

    @property
    def address(self) -> str:
        """The URL without a user's name and password: fit to be shown."""
        return self.url._replace(netloc=self.url.netloc.rpartition("@")[2]).geturl()

    @property
    def secure(self) -> bool:
        return self.url.scheme in ("https", "grpcs")


class Session(Protocol[R_co]):
    """One question, for many images."""

    async def predict(self, image: bytes, call: Call) -> R_co:
        """The answer for one encoded image."""
        ...

    async def aclose(self) -> None:
        """Withdraw what is in hand."""
        ...


class Transport(Protocol):
    """All methods raise ClientError, and leave it to their caller to give up when the time is over."""

    async def predict(self, question: Question[R], image: bytes, call: Call) -> R:
        """The answer for one encoded image."""
        ...

    def session(self, question: Question[R]) -> Session[R]: ...

    async def models(self, call: Call) -> tuple[Model, ...]: ...

    async def ready(self, call: Call) -> bool: ...

    async def aclose(self) -> None: ...


def open_transport(setup: Setup) -> Transport:
    """The transport of the URL's scheme. It connects when it is first asked, and belongs to that event loop then.

    Raises:
        ImportError: gRPC is not installed.
        OSError: a certificate or key cannot be read.
    """
    if setup.url.scheme in ("http", "https"):
        from convmlp_client.transport.rest import RestTransport

        return RestTransport(setup)
    try:
        from convmlp_client.transport.grpc import RpcTransport
    except ModuleNotFoundError as error:
        raise ImportError(
            f"grpc:// and grpcs:// need {error.name}, which is not installed: pip install 'convmlp-client[grpc]'"
        ) from error
    return RpcTransport(setup)


def parse_url(url: str) -> SplitResult:
    """A service's URL.

    Raises:
        ValueError: it is not one of http://, https://, grpc:// or grpcs:// with a host.
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
        raise ValueError(f"{url!r} names more than a service; {expected}")
    return parts
