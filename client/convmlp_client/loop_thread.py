"""An event loop in its own thread, which other threads call."""

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
    """Starts its thread at the first call. The thread is a daemon: the process may exit without closing it."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may close a generator while this thread holds the lock, and that calls
        # `start`.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._closed = False

    def call(self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]], *args: *Ts) -> T:
        """Run a coroutine function in the loop and return its result. Raises as `start` and as the function."""
        future = self.start(function, *args)
        try:
            return wait_result(future)
        finally:
            future.cancel()  # has an effect only if the wait was interrupted

    def start(self, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, T]], *args: *Ts) -> Future[T]:
        """Start a coroutine function in the loop. Cancelling the future cancels the function.

        Raises:
            ClientClosed: the thread has ended.
            RuntimeError: this process was forked after the thread had started.
        """
        if self._loop is not None and self._process != os.getpid():
            raise RuntimeError("the client was in use before this process was forked; make one in each process")
        with self._lock:  # so that nothing starts in a loop that is closing
            if self._closed:
                raise ClientClosed("the client is closed")
            if self._loop is None:
                self._loop = self._start_thread()
            return asyncio.run_coroutine_threadsafe(function(*args), self._loop)

    def close(self, shutdown: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `shutdown` in the loop, cancel everything else, and end the thread."""
        if self._loop is not None and self._process != os.getpid():
            return  # thread and connections are the parent's
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            try:
                asyncio.run_coroutine_threadsafe(shutdown(), loop).result()
            finally:
                loop.call_soon_threadsafe(loop.stop)
                self._thread.join()

    def _start_thread(self) -> asyncio.AbstractEventLoop:
        started: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=_run_loop, args=(started,), name="convmlp-client", daemon=True)
        self._thread.start()
        self._process = os.getpid()
        return started.result()

    def __del__(self) -> None:
        if self._loop is not None and self._process == os.getpid():
            warnings.warn("a Client was not closed; use `with`, or call its close()", ResourceWarning, stacklevel=2)
            self._loop.call_soon_threadsafe(self._loop.stop)


def wait_result(future: Future[T]) -> T:
    """Wait for the result of a future. Raises ClientClosed if the future was cancelled."""
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise ClientClosed("the client was closed before the reply arrived") from None


def _run_loop(started: Future[asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner() as runner:  # cancels the remaining tasks when the loop has stopped
        started.set_result(runner.get_loop())
        runner.get_loop().run_forever()
