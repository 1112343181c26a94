"""Both ends of the wire, as its tests use them: pictures to send, a pool that is listened to, a worker by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from model.types import ClassifyOutput, Geometry, ModelInput, QueryParams, Size, Task
from service.wire.messages import Hello, ModelState, Phase, Predict, State, WaitEstimate
from service.wire.pool import WorkerPool
from service.wire.worker_endpoint import Envelope, WorkerEndpoint
from service.worker.model_registry import new_model
from tests.fakes import fake_bundle

CLASSIFY = "fake_classify"
SIZE = Size(40, 60)
NOTHING_AHEAD = WaitEstimate(0.0, 0.0)


def picture(level: int = 1, height: int = 32, width: int = 64) -> ModelInput:
    return ModelInput(np.full((height, width, 3), level, np.uint8), Geometry(SIZE, Size(32, 48)))


def soon() -> float:
    """A deadline that is met unless something hangs."""
    return time.monotonic() + 20


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@dataclass
class Heard:
    """What a pool told its listener."""

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
async def pool_of(*addresses: str) -> AsyncIterator[tuple[WorkerPool, Heard]]:
    heard = Heard()
    async with WorkerPool(addresses, 0.02, 30.0, heard) as pool:
        yield pool, heard


async def all_there(pool: WorkerPool) -> None:
    """Wait until every worker is at work, and ready for every model."""
    await until(lambda: pool.readiness().reason == "ready")


async def ask(pool: WorkerPool, level: int = 1, model: str = CLASSIFY, of: ModelInput | None = None) -> int:
    """The class that a model gives a picture: its grey level, where all is well."""
    status = next(status for status in pool.models() or () if status.config.name == model)
    answer = await pool.predict("r", status, of or picture(level), QueryParams(), soon())
    assert isinstance(answer.output, ClassifyOutput)
    return int(answer.output.indices[0])


def served(pool: WorkerPool) -> list[str]:
    return [status.config.name for status in pool.models() or ()]


async def introduce(
    door: WorkerEndpoint, instance: str = "one", backlog_s: float = 0.0, models: Sequence[str] = (CLASSIFY,)
) -> None:
    """Answer the next Hello as a worker that is ready."""
    letter = await door.receive()
    assert isinstance(letter.message, Hello)
    shelf = [new_model(fake_bundle(Task.CLASSIFY, name)) for name in models]
    states = tuple(ModelState(one.name, one.version, True, "cpu", "fp32") for one in shelf)
    configs = {one.version: one.config.model_dump_json() for one in shelf}
    door.tell(letter.sender, State(instance, Phase.READY, "ready", backlog_s, states, configs))


async def next_job(door: WorkerEndpoint) -> tuple[Envelope, int]:
    """The next prediction that a front-end asks for, and its number."""
    async with asyncio.timeout(20):
        while True:
            letter = await door.receive()
            if isinstance(letter.message, Predict):
                return letter, letter.message.job
