"""An event loop in a thread of its own, asked from other threads."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import warnings
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar, TypeVarTuple, Unpack

from convmlp_client.errors import ClientClosed

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class LoopThread:
    """It starts with the first call, and is a daemon: a process may end without closing it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a generator that is collected while it is held ends its session
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._closed = False

    def call(self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]], *args: *Ts) -> T:
        """What the function gives, there. Raises as `start`, or what the function raises."""
        future = self.start(function, *args)
        try:
            return result_of(future)
        finally:
            future.cancel()  # does nothing unless the wait was interrupted

    def start(self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]], *args: *Ts) -> Future[T]:
        """Its result, once it is there. Cancelling the future cancels the function.

        Raises:
            ClientClosed: the thread has ended.
            RuntimeError: the thread is that of the process from which this one was forked.
        """
        if self._loop is not None and self._process != os.getpid():
            raise RuntimeError("the client was in use before this process was forked; make one in each process")
        with self._lock:  # so that nothing is begun in a loop that is being closed
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._loop is None:
                self._begin()
                assert self._loop is not None
            return asyncio.run_coroutine_threadsafe(function(*args), self._loop)

    def close(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `last` there, cancel all else, and end the thread."""
        if self._loop is not None and self._process != os.getpid():
            return  # thread and connections are the parent's
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            try:
                asyncio.run_coroutine_threadsafe(last(), loop).result()
            finally:
                loop.call_soon_threadsafe(loop.stop)
                self._thread.join()

    def _begin(self) -> None:
        begun: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=_run_loop, args=(begun,), name="convmlp-client", daemon=True)
        self._thread.start()
        self._process = os.getpid()
        self._loop = begun.result()

    def __del__(self) -> None:
        if self._loop is not None and self._process == os.getpid():
            warnings.warn("a Client was not closed; use `with`, or call its close()", ResourceWarning, stacklevel=2)
            self._loop.call_soon_threadsafe(self._loop.stop)


def result_of(future: Future[T]) -> T:
    """What a future holds, once it does.

    Raises:
        ClientClosed: it was cancelled.
    """
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise ClientClosed("the client was closed before the answer came") from None


def _run_loop(begun: Future[asyncio.AbstractEventLoop]) -> None:
    """Until the loop is stopped; then what it still has in hand is cancelled."""
    with asyncio.Runner() as runner:
        begun.set_result(runner.get_loop())
        runner.get_loop().run_forever()
