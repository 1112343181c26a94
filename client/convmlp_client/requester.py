"""What both clients are made of: a request's deadline, its place among those in hand, its attempts."""

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
from convmlp_client.parameters import Question
from convmlp_client.results import Model, Result
from convmlp_client.retry import Clock, Deadline, Retries, SystemClock
from convmlp_client.transport import Call, Compression, Session, Setup, StrPath, open_transport, parse_url

R = TypeVar("R", bound=Result)
T = TypeVar("T")

GRACE_S = 0.5
"""What an answer may take on its way beyond the time that the service was given: its own words are better than ours."""
READY_POLL_S = 0.25
CLOSING_S = 1.0
"""For requests and sessions to end, before their connections are closed under them."""
API_KEY_VARIABLE: Final = "CONVMLP_API_KEY"
USER_AGENT: Final = "convmlp-client"

Predict = Callable[[bytes, Call], Awaitable[R]]


def make_core(
    url: str,
    *,
    timeout_s: float | None,
    api_key: str | None,
    retries: int | Retries,
    max_concurrency: int,
    user_agent: str,
    ca_file: StrPath | None,
    client_certificate: tuple[StrPath, StrPath] | None,
    compression: Compression | None,
    clock: Clock | None = None,
) -> Core:
    """A core by the arguments of the clients.

    Raises:
        ValueError: one of them is out of its range, or does not go with the URL.
        ImportError, OSError: as `open_transport`.
    """
    parts = parse_url(url)
    _check_timeout(timeout_s)
    if max_concurrency < 1:
        raise ValueError(f"max_concurrency is {max_concurrency}, expected 1 or more")
    if isinstance(retries, int):
        if retries < 0:
            raise ValueError(f"retries is {retries}, expected 0 or more")
        retries = Retries(attempts=retries + 1)
    if (ca_file is not None or client_certificate is not None) and parts.scheme not in ("https", "grpcs"):
        raise ValueError(f"certificates are for https:// and grpcs://, not for {url!r}")
    if compression is not None and not parts.scheme.startswith("grpc"):
        raise ValueError(f"compression is for gRPC; over {parts.scheme}:// the service takes images as they are")
    key = (api_key if api_key is not None else os.environ.get(API_KEY_VARIABLE, "")).strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("the API key has characters that cannot be sent; expected printable ASCII")
    setup = Setup(parts, key or None, user_agent, max_concurrency, ca_file, client_certificate, compression)
    return Core(setup, timeout_s, retries, clock or SystemClock())


def _check_timeout(timeout_s: float | None) -> None:
    if timeout_s is not None and not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s is {timeout_s}, expected a number of seconds above 0, or None")


class Core:
    """A transport, and the rules by which it is asked. It belongs to the event loop in which it is first asked."""

    def __init__(self, setup: Setup, timeout_s: float | None, retries: Retries, clock: Clock) -> None:
        """Raises ImportError, OSError: as `open_transport`."""
        self.address = setup.address
        self.max_concurrency = setup.max_concurrency
        self._transport = open_transport(setup)
        self._timeout_s = timeout_s
        self._retries = retries
        self._clock = clock
        self._slots = asyncio.Semaphore(setup.max_concurrency)
        self._in_hand: set[asyncio.Timeout] = set()
        self._ending = 0
        self._left = asyncio.Event()
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._closed = False

    async def predict(self, question: Question[R], image: ImageInput, timeout_s: float | None) -> R:
        """The answer for one image.

        Raises:
            ClientError: the service's own, or none came in time.
            TypeError, ValueError, OSError: the image cannot be read; as `convmlp_client.images.encoded_image`.
        """
        return await self.put(partial(self._transport.predict, question), image, timeout_s)

    async def session(self, question: Question[R]) -> Session[R]:
        """For many images with one question: `put` them to its `predict`, and `end` it."""
        self._check_usable()
        return self._transport.session(question)

    async def end(self, session: Session[Result]) -> None:
        """Close a session, which `aclose` waits for."""
        self._ending += 1
        try:
            await session.aclose()
        finally:
            self._ending -= 1
            self._left.set()

    async def put(self, predict: Predict[R], image: ImageInput, timeout_s: float | None) -> R:
        """The answer that `predict` gives for one image. Raises as `predict` above."""
        async with self._request(timeout_s) as deadline:
            data = image if isinstance(image, bytes) else await asyncio.to_thread(encoded_image, image)
            if not data:
                raise BadImage("the image is empty: it has no bytes")
            return await self._attempts(partial(predict, data), deadline)

    async def models(self, timeout_s: float | None) -> tuple[Model, ...]:
        async with self._request(timeout_s) as deadline:
            return await self._attempts(self._transport.models, deadline)

    async def ready(self, timeout_s: float | None) -> bool:
        return await self._why_not_ready(timeout_s) is None

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Raises DeadlineExceeded where the service is not ready by then, with the reason."""
        deadline = Deadline.after(timeout_s, self._clock)
        while (why_not := await self._why_not_ready(deadline.left_s())) is not None:
            if deadline.is_passed_in(READY_POLL_S):
                raise DeadlineExceeded(f"{self.address} was not ready within {timeout_s:g} s: {why_not}")
            await self._clock.sleep(READY_POLL_S)

    async def aclose(self) -> None:
        """Close all connections. Requests in hand end with ClientClosed."""
        if self._closed:
            return
        self._closed = True
        for timer in self._in_hand:
            timer.reschedule(0.0)  # their time is over
        # First they, then the connections: one that is being made meanwhile would be forgotten.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_S):
                while self._in_hand or self._ending:
                    self._left.clear()
                    await self._left.wait()
        await self._transport.aclose()

    async def _attempts(self, attempt: Callable[[Call], Awaitable[T]], deadline: Deadline) -> T:
        request_id = uuid.uuid4().hex

        async def once() -> T:
            self._check_usable()
            return await attempt(Call(request_id, deadline.left_s()))

        return await self._retries.call(once, deadline)

    @asynccontextmanager
    async def _request(self, timeout_s: float | None) -> AsyncIterator[Deadline]:
        """A place among the requests in hand, until the deadline."""
        self._check_usable()
        _check_timeout(timeout_s)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = Deadline.after(timeout_s, self._clock)
        try:
            async with asyncio.timeout(None if timeout_s is None else timeout_s + GRACE_S) as timer:
                self._in_hand.add(timer)
                try:
                    async with self._slots:
                        yield deadline
                finally:
                    self._in_hand.discard(timer)
                    self._left.set()
        except TimeoutError:
            if not timer.expired():
                raise
            if self._closed:
                raise ClientClosed("the client was closed before the answer came") from None
            raise DeadlineExceeded(f"no answer from {self.address} within {timeout_s:g} s") from None

    async def _why_not_ready(self, timeout_s: float | None) -> str | None:
        try:
            async with self._request(timeout_s) as deadline:
                ready = await self._transport.ready(Call(uuid.uuid4().hex, deadline.left_s()))
        except (ConnectionFailed, DeadlineExceeded, RetryLater) as error:
            return error.detail
        return None if ready else "it says that it is not"

    def _check_usable(self) -> None:
        """Raises RuntimeError where its connections cannot be used any more (ClientClosed), or not here."""
        if self._closed:
            raise ClientClosed("the client is closed")
        here = os.getpid(), asyncio.get_running_loop()
        if self._home is None:
            self._home = here
        elif self._home[0] != here[0]:
            raise RuntimeError("the client was in use before this process was forked; make one in each process")
        elif self._home[1] is not here[1]:
            raise RuntimeError("the client is in use in another event loop; make one for each")
