"""Pictures that callers name by URL, fetched where the operator allows it: bounded in number, bytes and time."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.errors import ConvMLPError, ImageTooLarge
from service.errors import DeadlineExceeded, FetchTimeout, Overloaded, Refusal, UrlRefused
from service.frontend.core.address_policy import AddressPolicy, host_rule
from service.frontend.core.request_log import RequestRecord
from service.observability.metrics import FrontEndMetrics
from service.observability.tracing import code_of
from service.settings import Settings

if TYPE_CHECKING:
    from service.frontend.core.http_source import Resolve

NOT_FETCHED = (
    "this service does not fetch pictures by URL: download the picture and send it, or ask the service's operator to "
    "allow the URL's host with the setting fetch_urls"
)
CALLER_SHARE = 2
"""A caller may have so many times as many fetches in progress as it leaves free: two thirds of all."""
RETRY_S = 1.0
JOIN_BYTES = 2 * 2**20
"""A picture or body of more bytes is put together in a thread: for 64 MB it takes 0.1 s, without the interpreter's
lock."""


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """Where a picture is: what a caller sent in the place of its bytes."""

    text: str


class ImageFetcher:
    """Fetches pictures for all APIs of a process.

    `take` holds bytes for a request until its end, as those of its body; it raises Overloaded. `resolve` and `tls` are
    those of `HttpSource`.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: FrontEndMetrics,
        take: Callable[[RequestRecord, int], None],
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._metrics = metrics
        self._take = take
        self._max_bytes = settings.max_image_bytes
        self._max_request_bytes = settings.max_request_bytes
        self._timeout_s = settings.fetch_timeout_ms / 1000
        self._slots = _Slots(settings.max_fetches, settings.max_in_flight)
        self._source = None
        if settings.fetch_urls:
            # Imported only where it is used: httpx2 takes some 20 MB and 0.15 s.
            from service.frontend.core.http_source import HttpSource

            rules = tuple(map(host_rule, settings.fetch_urls))
            self._source = HttpSource(rules, AddressPolicy(settings.fetch_private_networks), resolve, tls)

    async def fetch(
        self, url: str, record: RequestRecord, deadline_s: float, *, authorization: str | None = None
    ) -> bytes:
        """The bytes of the picture at `url`, which nobody has decoded yet.

        They count among the bytes that the request of `record` holds. `deadline_s` is on the clock of `time.monotonic`.
        `authorization` is the value of a header for the URL's own origin.

        Raises:
            UrlRefused: URLs are not fetched, or not this one: by its form, its host, or the host's addresses.
            ImageTooLarge: the picture has more bytes than one may have, or with it the request has.
            FetchFailed: the host cannot be reached, or answers with an error.
            FetchTimeout: the picture did not come within `fetch_timeout_ms`.
            DeadlineExceeded: the request's deadline passed first.
            Overloaded: too many fetches wait, or the bytes of all requests are at their limit.
        """
        started_s, outcome = time.monotonic(), "ok"
        try:
            return await self._fetch(url, record, deadline_s, authorization)
        except BaseException as error:
            outcome = code_of(error)
            raise
        finally:
            self._metrics.fetched(outcome, time.monotonic() - started_s)

    async def _fetch(self, text: str, record: RequestRecord, deadline_s: float, authorization: str | None) -> bytes:
        source = self._source
        if source is None:
            raise UrlRefused(NOT_FETCHED)
        url = source.parse(text)
        try:
            async with (
                asyncio.timeout(deadline_s - time.monotonic()),
                self._slots.one_of(record.caller),
                _within(self._timeout_s, url.host),
                source.open(url, authorization) as answer,
            ):
                if answer.nbytes is not None:
                    self._check(answer.host, answer.nbytes, record)
                chunks: list[bytes] = []
                total = 0
                async for chunk in answer.chunks:
                    total += len(chunk)
                    self._check(answer.host, total, record, len(chunk))
                    self._take(record, len(chunk))
                    chunks.append(chunk)
        except TimeoutError:
            raise DeadlineExceeded(f"the deadline passed before the picture came from {url.host}") from None
        return await asyncio.to_thread(b"".join, chunks) if total > JOIN_BYTES else b"".join(chunks)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()

    def _check(self, host: str, nbytes: int, record: RequestRecord, more: int | None = None) -> None:
        """Raises ImageTooLarge for a picture of `nbytes`, of which `more` (by default all) are not held yet."""
        if nbytes > self._max_bytes:
            raise ImageTooLarge(f"the picture at {host} has more than {self._max_bytes:,} bytes, which is the limit")
        if record.held_bytes + (nbytes if more is None else more) > self._max_request_bytes:
            raise ImageTooLarge(
                f"with the picture at {host} the request has more than {self._max_request_bytes:,} bytes, which is the "
                "limit; send its pictures in several requests"
            )


@asynccontextmanager
async def _within(seconds: float, host: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise FetchTimeout(
            f"the picture did not come from {host} within {seconds:g} s; the service's operator sets the time with "
            "fetch_timeout_ms"
        ) from None


class _Slots:
    """`limit` fetches at a time, and at most `max_waiting` that wait for one; no caller takes all."""

    def __init__(self, limit: int, max_waiting: int) -> None:
        self._limit = limit
        self._max_waiting = max_waiting
        self._running: dict[str, int] = {}
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def one_of(self, caller: str) -> AsyncIterator[None]:
        """A slot for one fetch of a caller. Raises Overloaded."""
        if self._may_start(caller):
            self._start(caller)
        else:
            await self._wait(caller)
        try:
            yield
        finally:
            self._end(caller)

    def _may_start(self, caller: str) -> bool:
        running = sum(self._running.values())
        of_caller = self._running.get(caller, 0)
        return not running or (running < self._limit and of_caller < CALLER_SHARE * (self._limit - running))

    def _start(self, caller: str) -> None:
        self._running[caller] = self._running.get(caller, 0) + 1

    async def _wait(self, caller: str) -> None:
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} pictures wait to be fetched", RETRY_S, Refusal.IN_FLIGHT)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((caller, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((caller, turn))
            else:  # its turn came at the same moment
                self._end(caller)
            raise

    def _end(self, caller: str) -> None:
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        for entry in list(self._waiting):
            waiting_caller, turn = entry
            if not turn.done() and self._may_start(waiting_caller):
                self._waiting.remove(entry)
                self._start(waiting_caller)
                turn.set_result(None)


async def image_bytes(
    upload: bytes | ImageUrl | ConvMLPError, fetcher: ImageFetcher, record: RequestRecord, deadline_s: float
) -> bytes:
    """The picture that an upload is or names. Raises the upload's own error, or as `ImageFetcher.fetch`."""
    match upload:
        case ImageUrl(text):
            return await fetcher.fetch(text, record, deadline_s)
        case bytes():
            return upload
        case _:
            raise upload
