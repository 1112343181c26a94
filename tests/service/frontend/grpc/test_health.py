"""grpc.health.v1: the status of the server, its services and models, and how fast watchers receive changes."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from service.settings import Settings
from tests.fakes import fake_worker
from tests.service.frontend.grpc_server import Rpc, RpcWithWorker, open_rpc, open_rpc_at
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
SERVICES = ("", "convmlp.v1.Vision", "inference.GRPCInferenceService", "grpc.health.v1.Health")
MODELS = ("fake_classify", "fake_detect", "fake_segment")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rpc() -> AsyncIterator[RpcWithWorker]:
    async with open_rpc() as running:
        yield running


async def check(rpc: Rpc, name: str) -> int:
    response: HealthCheckResponse = await rpc.health.Check(HealthCheckRequest(service=name), timeout=PATIENCE_S)
    return response.status


async def watch(rpc: Rpc, name: str) -> AsyncIterator[int]:
    call = rpc.health.Watch(HealthCheckRequest(service=name))
    try:
        async for response in call:
            yield response.status
    finally:
        call.cancel()


async def next_status(watching: AsyncIterator[int]) -> int:
    """The next status that a watcher receives."""
    async with asyncio.timeout(PATIENCE_S):
        return await anext(watching)


@pytest.mark.parametrize("name", [*SERVICES, *MODELS])
async def test_everything_that_is_ready_is_serving(rpc: RpcWithWorker, name: str) -> None:
    """The server, each service, and each model under its name are SERVING."""
    assert await check(rpc, name) == SERVING


async def test_an_unknown_name(rpc: RpcWithWorker) -> None:
    """A check of an unknown name is NOT_FOUND and lists the known ones; a watch gets SERVICE_UNKNOWN and goes on."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await check(rpc, "convmlp.v1.Visoin")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'convmlp.v1.Visoin'" in (refused.value.details() or "")
    assert "convmlp.v1.Vision, grpc.health.v1.Health, inference.GRPCInferenceService, fake_classify" in (
        refused.value.details() or ""
    )
    async with aclosing(watch(rpc, "no_such_model")) as watching:  # type: ignore[type-var]
        assert await next_status(watching) == SERVICE_UNKNOWN


async def test_watchers_follow_a_worker_that_comes_and_goes() -> None:
    """Without a worker nothing is serving. Models are unknown until a worker has come, and known when it is lost."""
    with tempfile.TemporaryDirectory(prefix="convmlp-test-") as folder:
        address = f"ipc://{folder}/worker"
        async with open_rpc_at(address, Settings(heartbeat_interval_ms=50)) as rpc:
            assert [await check(rpc, name) for name in SERVICES] == [NOT_SERVING] * len(SERVICES)
            whole, model = watch(rpc, ""), watch(rpc, "fake_detect")
            assert [await next_status(whole), await next_status(model)] == [NOT_SERVING, SERVICE_UNKNOWN]
            settings = Settings(heartbeat_interval_ms=50)
            for _ in range(2):
                async with fake_worker(settings, address):
                    assert await next_status(whole) == SERVING
                    while (status := await next_status(model)) != SERVING:
                        assert status == NOT_SERVING  # not proven yet
                assert [await next_status(whole), await next_status(model)] == [NOT_SERVING] * 2
                assert await check(rpc, "fake_detect") == NOT_SERVING


@pytest.mark.settings(self_check_interval_ms=50)
async def test_a_model_whose_answers_are_wrong_is_not_serving(fresh_rpc: RpcWithWorker) -> None:
    """A model that fails its self-check is NOT_SERVING, and so is the server; other models stay SERVING."""
    broken, whole = watch(fresh_rpc, "fake_classify"), watch(fresh_rpc, "")
    assert [await next_status(broken), await next_status(whole)] == [SERVING, SERVING]
    fresh_rpc.worker.runner.shift = 40
    assert [await next_status(broken), await next_status(whole)] == [NOT_SERVING, NOT_SERVING]
    assert await check(fresh_rpc, "convmlp.v1.Vision") == NOT_SERVING
    fresh_rpc.worker.runner.shift = 0
    assert [await next_status(broken), await next_status(whole)] == [SERVING, SERVING]


@pytest.mark.settings(self_check_interval_ms=50)
async def test_a_watcher_that_disconnects(fresh_rpc: RpcWithWorker) -> None:
    """When a watcher disconnects, the others still receive every change."""
    leaving, staying = watch(fresh_rpc, ""), watch(fresh_rpc, "")
    assert [await next_status(leaving), await next_status(staying)] == [SERVING, SERVING]
    await leaving.aclose()  # type: ignore[attr-defined]
    fresh_rpc.worker.runner.shift = 40
    assert await next_status(staying) == NOT_SERVING


async def test_a_drain_reaches_watchers_first(fresh_rpc: RpcWithWorker) -> None:
    """A drain sends NOT_SERVING to all watchers first, and ends their streams."""
    call = fresh_rpc.health.Watch(HealthCheckRequest(service="fake_segment"))
    assert (await call.read()).status == SERVING
    fresh_rpc.server.stop.set()
    async with asyncio.timeout(PATIENCE_S):
        assert (await call.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in (ended.value.details() or "")
    await fresh_rpc.server.ended
