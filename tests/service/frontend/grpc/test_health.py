"""grpc.health.v1: what callers, load balancers and orchestrators are told, and how soon."""

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

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
SERVICES = ("", "convmlp.v1.Vision", "inference.GRPCInferenceService", "grpc.health.v1.Health")
MODELS = ("fake_classify", "fake_detect", "fake_segment")
PATIENCE_S = 20


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


async def told(watching: AsyncIterator[int]) -> int:
    """The next status that a watcher is told."""
    async with asyncio.timeout(PATIENCE_S):
        return await anext(watching)


@pytest.mark.parametrize("name", [*SERVICES, *MODELS])
async def test_everything_that_is_ready_is_serving(rpc: RpcWithWorker, name: str) -> None:
    """The whole, each service, and each model under its own name."""
    assert await check(rpc, name) == SERVING


async def test_an_unknown_name_is_said_to_be_unknown(rpc: RpcWithWorker) -> None:
    """A check of it is NOT_FOUND, with words; a watch is told SERVICE_UNKNOWN and goes on."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await check(rpc, "convmlp.v1.Visoin")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'convmlp.v1.Visoin'" in (refused.value.details() or "")
    assert "convmlp.v1.Vision, grpc.health.v1.Health, inference.GRPCInferenceService, fake_classify" in (
        refused.value.details() or ""
    )
    async with aclosing(watch(rpc, "no_such_model")) as watching:  # type: ignore[type-var]
        assert await told(watching) == SERVICE_UNKNOWN


async def test_watchers_follow_a_worker_that_comes_and_goes() -> None:
    """Nothing is serving without a worker. Models are unknown until one was there, and remembered when it is lost."""
    with tempfile.TemporaryDirectory(prefix="convmlp-test-") as folder:
        address = f"ipc://{folder}/worker"
        async with open_rpc_at(address, Settings(heartbeat_interval_ms=50)) as rpc:
            assert [await check(rpc, name) for name in SERVICES] == [NOT_SERVING] * len(SERVICES)
            whole, model = watch(rpc, ""), watch(rpc, "fake_detect")
            assert [await told(whole), await told(model)] == [NOT_SERVING, SERVICE_UNKNOWN]
            settings = Settings(heartbeat_interval_ms=50)
            for _ in range(2):
                async with fake_worker(settings, address):
                    assert await told(whole) == SERVING
                    while (status := await told(model)) != SERVING:
                        assert status == NOT_SERVING  # not proven yet
                assert [await told(whole), await told(model)] == [NOT_SERVING] * 2
                assert await check(rpc, "fake_detect") == NOT_SERVING


async def test_a_model_whose_answers_are_wrong_is_not_serving() -> None:
    """It is told under its own name; the others keep their health, but for the service as a whole."""
    async with open_rpc(self_check_interval_ms=50) as rpc:
        broken, whole = watch(rpc, "fake_classify"), watch(rpc, "")
        assert [await told(broken), await told(whole)] == [SERVING, SERVING]
        rpc.worker.runner.shift = 40
        assert [await told(broken), await told(whole)] == [NOT_SERVING, NOT_SERVING]
        assert await check(rpc, "convmlp.v1.Vision") == NOT_SERVING
        rpc.worker.runner.shift = 0
        assert [await told(broken), await told(whole)] == [SERVING, SERVING]


async def test_a_watcher_that_leaves_costs_the_others_nothing() -> None:
    """They are told of all changes as before."""
    async with open_rpc(self_check_interval_ms=50) as rpc:
        leaving, staying = watch(rpc, ""), watch(rpc, "")
        assert [await told(leaving), await told(staying)] == [SERVING, SERVING]
        await leaving.aclose()  # type: ignore[attr-defined]
        rpc.worker.runner.shift = 40
        assert await told(staying) == NOT_SERVING


async def test_a_drain_is_told_first() -> None:
    """While the calls in hand are finished all watchers have heard NOT_SERVING, and their streams have ended."""
    async with open_rpc() as rpc:
        call = rpc.health.Watch(HealthCheckRequest(service="fake_segment"))
        assert (await call.read()).status == SERVING
        rpc.server.stop.set()
        async with asyncio.timeout(PATIENCE_S):
            assert (await call.read()).status == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await call.read()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "shutting down" in (ended.value.details() or "")
        await rpc.server.ended
