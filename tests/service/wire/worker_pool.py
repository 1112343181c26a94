"""Front-ends of the tests of wire and worker: a pool of real connections, and requests of the fake classifier."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from model.types import ClassifyOutput, Geometry, ModelInput, QueryParams, Size
from service.types import ModelStatus
from service.wire.pool import WorkerPool
from tests.waiting import until

CLASSIFY = "fake_classify"
SIZE = Size(40, 60)
LEVEL = 9
"""A grey level, and the class that the fake classifier gives it."""


def picture(level: int = 1, height: int = 32, width: int = 64) -> ModelInput:
    return ModelInput(np.full((height, width, 3), level, np.uint8), Geometry(SIZE, Size(32, 48)))


def far_deadline_s() -> float:
    """A deadline that is met unless something hangs."""
    return time.monotonic() + 20


@dataclass
class PoolEvents:
    """What a pool reported to its listener."""

    up: list[tuple[int, int]] = field(default_factory=list)
    replaced: int = 0
    resent_for: list[str] = field(default_factory=list)

    def workers_up(self, up: int, of: int) -> None:
        self.up.append((up, of))

    def worker_replaced(self) -> None:
        self.replaced += 1

    def resent(self, reason: str) -> None:
        self.resent_for.append(reason)


@asynccontextmanager
async def open_pool(*addresses: str) -> AsyncIterator[tuple[WorkerPool, PoolEvents]]:
    events = PoolEvents()
    async with WorkerPool(addresses, 0.02, 30.0, events) as pool:
        yield pool, events


@asynccontextmanager
async def front_end(address: str, heartbeat_s: float = 0.02, timeout_s: float = 30.0) -> AsyncIterator[WorkerPool]:
    """A pool of one worker."""
    async with WorkerPool([address], heartbeat_s, timeout_s, PoolEvents()) as pool:
        yield pool


async def all_ready(pool: WorkerPool) -> None:
    """Wait until every worker is ready for every model."""
    await until(lambda: pool.readiness().reason == "ready")


def served(pool: WorkerPool) -> list[str]:
    """The names of the models that the pool's workers serve, in order."""
    return [status.config.name for status in pool.models or ()]


def status_of(pool: WorkerPool, model: str = CLASSIFY) -> ModelStatus:
    return next(status for status in pool.models or () if status.config.name == model)


async def classify(
    pool: WorkerPool, level: int = LEVEL, model: str | ModelStatus = CLASSIFY, of: ModelInput | None = None
) -> int:
    """The class of a picture of one grey level, or of another input: its grey level, where the worker is right."""
    status = status_of(pool, model) if isinstance(model, str) else model
    answer = await pool.predict("r", status, of or picture(level), QueryParams(), far_deadline_s())
    assert isinstance(answer.output, ClassifyOutput)
    return int(answer.output.indices[0])
