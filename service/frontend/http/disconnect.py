"""What it takes to wait with a caller: its body must come in time, and it may leave before its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.errors import DeadlineExceeded

T = TypeVar("T")

_SCOPE_KEY = "convmlp.hangup"
_WHOLE_KEY = "convmlp.whole"


class Disconnect:
    """The end of one connection. It tells who watches, at once: waiting for ASGI's own message takes a task for each
    request."""

    __slots__ = ("_watchers", "came")

    def __init__(self) -> None:
        self.came = False
        self._watchers: set[Callable[[], object]] = set()

    def __call__(self) -> None:
        """The connection is gone."""
        self.came = True
        for watcher in tuple(self._watchers):
            watcher()

    def watch(self, watcher: Callable[[], object]) -> None:
        self._watchers.add(watcher)

    def unwatch(self, watcher: Callable[[], object]) -> None:
        self._watchers.discard(watcher)

    def put_into(self, scope: MutableMapping[str, Any]) -> None:
        """Let the application know it by a request's scope."""
        scope[_SCOPE_KEY] = self


def mark_body_received(scope: MutableMapping[str, Any]) -> None:
    """The request's body has come to its end, read by the application or not."""
    scope[_WHOLE_KEY] = True


def body_received(request: Request) -> bool:
    """Whether reading the request's body takes no time any more."""
    return _WHOLE_KEY in request.scope


async def within_deadline(reading: Awaitable[T], deadline_s: float) -> T:
    """What was read of the request's body. `deadline_s` is on the clock of `time.monotonic`.

    Raises:
        DeadlineExceeded: the body had not come by then.
    """
    try:
        async with asyncio.timeout(deadline_s - time.monotonic()):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded("the request's deadline passed before its body had come") from None


def cancel_on_disconnect(request: Request) -> AbstractContextManager[None]:
    """What is awaited within is cancelled if the caller leaves first, which withdraws its jobs.

    Raises:
        ClientDisconnect: the caller left.
    """
    return _CancelOnDisconnect(request.scope[_SCOPE_KEY])


class _CancelOnDisconnect:
    __slots__ = ("_hangup", "_leave", "_others", "_task")

    def __init__(self, hangup: Disconnect) -> None:
        self._hangup = hangup

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._hangup.came:
            raise ClientDisconnect
        self._task = task
        self._others = task.cancelling()  # cancellations that are not ours, as `asyncio.timeout` tells them apart
        self._leave = task.cancel
        self._hangup.watch(self._leave)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._hangup.unwatch(self._leave)
        if not self._hangup.came:
            return
        if kind is None:  # the work was done all the same
            self._task.uncancel()
            raise ClientDisconnect
        if isinstance(error, asyncio.CancelledError) and self._task.uncancel() <= self._others:
            raise ClientDisconnect from None
