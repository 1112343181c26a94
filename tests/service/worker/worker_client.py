"""A front-end's end of the wire, as the worker's tests use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
from prometheus_client import CollectorRegistry

from model.bundle import BundleConfig
from model.types import ClassifyOutput, Geometry, ModelInput, QueryParams, Size
from service.observability.metrics import FrontEndMetrics
from service.types import ModelStatus
from service.wire.pool import WorkerPool

LEVEL = 9
PIXELS = np.full((32, 32, 3), LEVEL, np.uint8)


@asynccontextmanager
async def channel_to(address: str, heartbeat_s: float = 0.02, timeout_s: float = 30.0) -> AsyncIterator[WorkerPool]:
    async with WorkerPool([address], heartbeat_s, timeout_s, FrontEndMetrics(CollectorRegistry())) as channel:
        yield channel


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def served(channel: WorkerPool) -> list[str]:
    """The models that a front-end knows to be served, in their order."""
    return [status.config.name for status in channel.models() or ()]


def status_of(channel: WorkerPool, model: str) -> ModelStatus:
    return next(status for status in channel.models() or () if status.config.name == model)


def config_of(channel: WorkerPool, model: str) -> BundleConfig:
    return status_of(channel, model).config


async def ask(channel: WorkerPool, model: str = "fake_classify") -> int:
    """The class that a model gives a grey picture: LEVEL, where all is well."""
    return await ask_for(channel, status_of(channel, model))


async def ask_for(channel: WorkerPool, model: ModelStatus) -> int:
    model_input = ModelInput(PIXELS, Geometry(Size(32, 32), Size(36, 36)))
    answer = await channel.predict("r", model, model_input, QueryParams(), time.monotonic() + 20)
    assert isinstance(answer.output, ClassifyOutput)
    return int(answer.output.indices[0])


def soon() -> float:
    """A deadline that is met unless something hangs."""
    return time.monotonic() + 20
