"""Front-ends whose threads are all busy, so that what is sent meanwhile waits."""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.frontend.core.executor import ThreadPool, Work


@asynccontextmanager
async def held_threads(*pools: ThreadPool) -> AsyncIterator[threading.Event]:
    """All threads of these pools are busy until the event is set, or the context ends."""
    go = threading.Event()
    held = []
    for threads in pools:
        while threads.waiting == 0:
            work = Work(go.wait, (60,), math.inf, cost=1e12)
            threads.submit(work)
            held.append((threads, work))
        threads.release(held[-1][1])  # the one that waits
    try:
        yield go
    finally:
        go.set()
        for threads, work in held:
            threads.release(work)
