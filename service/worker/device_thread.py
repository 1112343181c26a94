"""The threads in which a worker's device computes."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DeviceThread(Executor):
    """One thread that makes one call after another, in their order.

    An executor, so that `run_in_executor` takes it. A batch is `post`ed: a future for each, whose result is awaited
    otherwise, costs more than all the rest of the way to the thread.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._closed = False
        self.post: Callable[[Callable[[], object]], None] = self._calls.put
        """Make a call in the thread. It must not raise. Raises RuntimeError: the thread is closed."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        # The interpreter ends after the present call: it would take down a thread in the middle of the device's code.
        atexit.register(self.shutdown)

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `Executor.submit`."""
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*args, **kwargs)
            except BaseException as error:  # the future's, as any executor's
                future.set_exception(error)
            else:
                future.set_result(result)

        self.post(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002
        """End after the calls that were made. See `Executor.shutdown`."""
        if not self._closed:
            self._closed, self.post = True, _refuse
            self._calls.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # an idle thread keeps nothing alive


def _refuse(_: Callable[[], object]) -> None:
    raise RuntimeError("the thread of the device is closed")
