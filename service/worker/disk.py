"""Reads and writes of a worker on disk, in threads, because a disk may not answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

from service.errors import Overloaded

MAX_READS = 4
"""Reads at a time. Loads run one by one, so that all but one are reads whose load was given up."""
LAST_WRITE_S = 1.0
"""How long a task that is cancelled waits for the end of its write."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class DiskReads:
    """Runs functions that read models from disk. A read that nobody waits for any more delays no other one."""

    def __init__(self) -> None:
        self._reading = 0

    async def run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Call a function in a thread, and return what it returns.

        Raises:
            Overloaded: too many reads hang.
            Exception: what the function raises.
        """
        if self._reading >= MAX_READS:
            raise Overloaded(f"{self._reading} earlier loads still read from disk; look at the store's disk")

        def ended() -> None:
            self._reading -= 1

        self._reading += 1
        return await _in_thread(lambda: function(*arguments), ended)


async def write_to_disk(function: Callable[[*Ts], None], *arguments: *Ts) -> None:
    """Call a function that writes to disk, in a thread.

    A caller that is cancelled waits until the write has ended, for `LAST_WRITE_S` at most: it would go on otherwise
    when its owner has ended, and its folder may be deleted by then.

    Raises:
        Exception: what the function raises.
    """
    writing = _in_thread(lambda: function(*arguments))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing], timeout=LAST_WRITE_S)
        raise


def _in_thread(function: Callable[[], T], on_end: Callable[[], None] = lambda: None) -> asyncio.Future[T]:
    """Call a function in a thread of its own, and `on_end` in the event loop once it has ended; gives its outcome.

    The thread cannot be ended: a network's file system may hold it for ever. It is a daemon, so that it does not delay
    the end of the process.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_outcome: Callable[[Any], None], outcome: T | BaseException) -> None:
        on_end()
        if not done.done():  # else nobody waits any more
            set_outcome(outcome)

    def work() -> None:
        try:
            result = function()
        except BaseException as error:  # passed to the caller
            outcome: tuple[Callable[[Any], None], T | BaseException] = (done.set_exception, error)
        else:
            outcome = (done.set_result, result)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, name="disk", daemon=True).start()
    return done
