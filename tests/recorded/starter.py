"""The one module here that names the service's own parts: the worker whose device is a fake.

Everything else of these tests reaches the service by its sockets and its command line. After code has moved, adapt the
imports below and nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import prometheus_client
import structlog.testing

from service.settings import Settings
from tests.fakes import fake_instances, fake_worker

POISON = 66
"""The grey level of the pictures at which the fake device fails."""


@dataclass(frozen=True)
class Worker:
    address: str
    hold: Callable[[], None]
    """Keeps every batch at the device until `release`."""
    release: Callable[[], None]
    metrics: Callable[[], str]
    """The text that a scrape of it reads."""


@asynccontextmanager
async def open_worker(**settings: Any) -> AsyncIterator[Worker]:  # noqa: ANN401  (any setting's own type)
    """A worker with a model for each task and a detector with masks, all on a fake device.

    A picture's class is its mean grey level, so that no answer depends on the processor.
    """
    # The worker's log is not recorded; its tracebacks take long to print.
    with structlog.testing.capture_logs():
        async with fake_worker(Settings(**settings), more=[fake_instances()]) as worker:
            runner = worker.runner
            runner.poison = POISON
            try:
                yield Worker(
                    worker.address,
                    runner.unblocked.clear,
                    runner.unblocked.set,
                    lambda: prometheus_client.generate_latest(worker.registry).decode(),
                )
            finally:
                runner.unblocked.set()
