"""Sends requests for both clients: deadline, concurrency limit, retries, and closing."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from convmlp_client.errors import BadImage, ClientClosed, ConnectionFailed, DeadlineExceeded, RetryLater
from convmlp_client.images import ImageInput, encoded_image
from convmlp_client.parameters import PredictParams
from convmlp_client.results import AnyResult, Model
from convmlp_client.retry import Clock, Deadline, Retries, SystemClock
from convmlp_client.transport import (
    Attempt,
    Compression,
    ImageStream,
    StrPath,
    Transport,
    TransportConfig,
    parse_url,
)

R = TypeVar("R", bound=AnyResult)
T = TypeVar("T")

REPLY_MARGIN_S = 0.5
"""How long the client waits for the reply beyond the service's timeout. The service's own error is more precise than
a timeout here."""
READY_POLL_INTERVAL_S = 0.25
CLOSE_TIMEOUT_S = 1.0
"""How long `aclose` waits for requests and streams to end before it closes their connections."""
API_KEY_VARIABLE: Final = "CONVMLP_API_KEY"
USER_AGENT: Final = "convmlp-client"


class Requester:
    """Sends requests over a transport. It belongs to the event loop of the first request."""

    def __init__(
        self, config: TransportConfig, timeout_s: float | None, retries: Retries, clock: Clock | None = None
    ) -> None:
        """Raises ImportError: gRPC is not installed; OSError: a certificate cannot be read. Tests pass a clock."""
        self.max_concurrency = config.max_concurrency
        self._address = config.address
        self._transport = _open_transport(config)
        self._timeout_s = timeout_s
        self._retries = retries
        self._clock = clock or SystemClock()
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._running: set[asyncio.Timeout] = set()
        self._closing_streams = 0
        self._ended = asyncio.Event()
        """Set whenever a request or a stream ends."""
        self._owner: tuple[int, asyncio.AbstractEventLoop] | None = None
        """Process and event loop of the first request."""
        self._closed = False

    async def predict(self, params: PredictParams[R], image: ImageInput, timeout_s: float | None) -> R:
        """The result for one image. `timeout_s` None means the client's own.

        Raises:
            ClientError: the service's error, or there was no reply in time.
            TypeError, ValueError, OSError: the image cannot be read; as `convmlp_client.images.encoded_image`.
        """
        return await self._predict(partial(self._transport.predict, params), image, timeout_s)

    async def open_stream(self, params: PredictParams[R]) -> ImageStream[R]:
        """A stream for many images with the same parameters, to be closed with `close_stream`."""
        self._check_usable()
        return self._transport.open_stream(params)

    async def predict_in(self, stream: ImageStream[R], image: ImageInput, timeout_s: float | None) -> R:
        """As `predict`, through a stream."""
        return await self._predict(stream.predict, image, timeout_s)

    async def close_stream(self, stream: ImageStream[AnyResult]) -> None:
        """Close a stream. `aclose` waits for this."""
        self._closing_streams += 1
        try:
            await stream.aclose()
        finally:
            self._closing_streams -= 1
            self._ended.set()

    async def models(self, timeout_s: float | None) -> tuple[Model, ...]:
        async with self._request(timeout_s) as deadline:
            return await self._send(self._transport.models, deadline)

    async def ready(self, timeout_s: float | None) -> bool:
        return await self._unready_reason(timeout_s) is None

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Raises DeadlineExceeded with the reason if the service is not ready in time."""
        deadline = Deadline.after(timeout_s, self._clock)
        while (reason := await self._unready_reason(deadline.remaining_s())) is not None:
            if not deadline.passes_within(READY_POLL_INTERVAL_S):
                await self._clock.sleep(READY_POLL_INTERVAL_S)
                if not deadline.passes_within(0.0):  # a pause may take longer than it should
                    continue
            raise DeadlineExceeded(f"{self._address} was not ready within {timeout_s:g} s: {reason}")

    async def aclose(self) -> None:
        """Close all connections. Running requests end with ClientClosed."""
        if self._closed:
            return
        self._closed = True
        for timer in self._running:
            timer.reschedule(0.0)  # expires at once
        # Requests end before the connections close: the transport would not know a connection that is being made.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while self._running or self._closing_streams:
                    self._ended.clear()
                    await self._ended.wait()
        await self._transport.aclose()

    async def _predict(
        self, send: Callable[[bytes, Attempt], Awaitable[T]], image: ImageInput, timeout_s: float | None
    ) -> T:
        async with self._request(timeout_s) as deadline:
            data = image if isinstance(image, bytes) else await asyncio.to_thread(encoded_image, image)
            if not data:
                raise BadImage("the image is empty; expected its encoded bytes")
            return await self._send(partial(send, data), deadline)

    async def _send(self, send: Callable[[Attempt], Awaitable[T]], deadline: Deadline) -> T:
        """The reply to a request, from its first or a later attempt."""
        request_id = uuid.uuid4().hex

        async def attempt() -> T:
            self._check_usable()
            return await send(Attempt(request_id, deadline.remaining_s()))

        return await self._retries.call(attempt, deadline)

    @asynccontextmanager
    async def _request(self, timeout_s: float | None) -> AsyncIterator[Deadline]:
        """A slot of the concurrency limit, and the deadline of a request."""
        self._check_usable()
        _check_timeout(timeout_s)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = Deadline.after(timeout_s, self._clock)
        try:
            async with asyncio.timeout(None if timeout_s is None else timeout_s + REPLY_MARGIN_S) as timer:
                self._running.add(timer)
                try:
                    async with self._slots:
                        yield deadline
                finally:
                    self._running.discard(timer)
                    self._ended.set()
        except TimeoutError:
            if not timer.expired():
                raise
            if self._closed:
                raise ClientClosed("the client was closed before the reply arrived") from None
            raise DeadlineExceeded(f"no reply from {self._address} within {timeout_s:g} s") from None

    async def _unready_reason(self, timeout_s: float | None) -> str | None:
        try:
            async with self._request(timeout_s) as deadline:
                ready = await self._transport.ready(Attempt(uuid.uuid4().hex, deadline.remaining_s()))
        except (ConnectionFailed, DeadlineExceeded, RetryLater) as error:
            return error.detail
        return None if ready else "the service reports that it is not ready"

    def _check_usable(self) -> None:
        """Raises ClientClosed, or RuntimeError in another process or event loop than that of the first request."""
        if self._closed:
            raise ClientClosed("the client is closed")
        here = os.getpid(), asyncio.get_running_loop()
        if self._owner is None:
            self._owner = here
        elif self._owner[0] != here[0]:
            raise RuntimeError("the client was in use before this process was forked; make one in each process")
        elif self._owner[1] is not here[1]:
            raise RuntimeError("the client is in use in another event loop; make one for each")


class BaseClient:
    """What both clients are made of. `AsyncClient` documents the arguments and the errors."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float | None = 30.0,
        api_key: str | None = None,
        retries: int | Retries = 3,
        max_concurrency: int = 64,
        user_agent: str = USER_AGENT,
        ca_file: StrPath | None = None,
        client_certificate: tuple[StrPath, StrPath] | None = None,
        compression: Compression | None = None,
    ) -> None:
        parts = parse_url(url)
        _check_timeout(timeout_s)
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency is {max_concurrency}, expected 1 or more")
        if isinstance(retries, int):
            if retries < 0:
                raise ValueError(f"retries is {retries}, expected 0 or more")
            retries = Retries(attempts=retries + 1)
        if (ca_file is not None or client_certificate is not None) and parts.scheme not in ("https", "grpcs"):
            raise ValueError(f"ca_file and client_certificate need https:// or grpcs://, the URL is {url!r}")
        if compression is not None and not parts.scheme.startswith("grpc"):
            raise ValueError(f"compression needs grpc:// or grpcs://, the URL is {url!r}")
        key = (api_key if api_key is not None else os.environ.get(API_KEY_VARIABLE, "")).strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError("the API key has characters that cannot be sent; expected printable ASCII")
        config = TransportConfig(
            parts, key or None, user_agent, max_concurrency, ca_file, client_certificate, compression
        )
        self._requester = Requester(config, timeout_s, retries)
        self._open()

    def _open(self) -> None:
        """Called once at the end of `__init__`."""


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s is {timeout_s}, expected a number of seconds above 0, or None")


def _open_transport(config: TransportConfig) -> Transport:
    if config.url.scheme in ("http", "https"):
        from convmlp_client.transport.rest import RestTransport

        return RestTransport(config)
    try:
        from convmlp_client.transport.grpc import GrpcTransport
    except ModuleNotFoundError as error:
        raise ImportError(
            f"grpc:// and grpcs:// need {error.name}, which is not installed: pip install 'convmlp-client[grpc]'"
        ) from error
    return GrpcTransport(config)
