"""Calls that wait: deadlines, cancellation, and workers that are full or lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import cv2
import grpc
import numpy as np

from convmlp.v1 import vision_pb2 as pb
from service.settings import Settings
from tests.service.frontend.grpc_server import (
    RpcWithWorker,
    open_rpc,
    open_rpc_at,
    reason,
    refusal,
    retry_s,
    rich,
    stub_of,
    until,
)
from tests.service.frontend.rest_server import picture
from tests.service.wire.scripted_worker import ScriptedWorker

Call = grpc.aio.UnaryUnaryCall[pb.ClassifyRequest, pb.ClassifyResponse]


def ask(rpc: RpcWithWorker, grey: int = 100, timeout: float | None = None) -> Call:
    return rpc.stub.Classify(pb.ClassifyRequest(image=picture(grey), top_k=1), timeout=timeout)


async def held(rpc: RpcWithWorker, waiting: int) -> list[Call]:
    """A call that the device holds, and `waiting` more in the queue."""
    before = len(rpc.worker.runner.batches)
    rpc.worker.runner.unblocked.clear()
    calls = [ask(rpc, 1)]
    await until(lambda: len(rpc.worker.runner.batches) == before + 1)
    for at in range(waiting):
        calls.append(ask(rpc, 2 + at))
    await until(lambda: rpc.waiting == waiting)
    return calls


async def test_a_callers_deadline_reaches_the_queue() -> None:
    """A call whose deadline passes in the queue leaves it and never runs."""
    async with open_rpc() as rpc:
        (first,) = await held(rpc, 0)
        before = len(rpc.worker.runner.batches)
        error = await refusal(ask(rpc, timeout=0.7))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: rpc.waiting == 0 and rpc.in_flight == 1)
        await until(lambda: rpc.outcomes("classify", "deadline-exceeded") == 1)
        rpc.worker.runner.unblocked.set()
        assert (await first).labels[0].index == 1
        assert len(rpc.worker.runner.batches) == before


async def test_a_deadline_that_passes_anywhere_is_counted_as_one() -> None:
    """A call that gRPC cancels at its deadline, here during decoding, counts as deadline-exceeded, not as cancelled."""
    _, data = cv2.imencode(".png", np.zeros((7000, 7000), np.uint8))
    async with open_rpc(prepare_threads=1) as rpc:
        rpc.worker.runner.unblocked.clear()
        request = pb.ClassifyRequest(image=data.tobytes())
        errors = await asyncio.gather(*(refusal(rpc.stub.Classify(request, timeout=0.7)) for _ in range(6)))
        assert {error.code() for error in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}
        await until(lambda: rpc.outcomes("classify", "deadline-exceeded") == 6)


async def test_a_deadline_in_reach_is_met() -> None:
    """A call that can be answered before its deadline is not refused."""
    async with open_rpc() as rpc:
        assert (await ask(rpc, 5, timeout=30)).labels[0].index == 5


async def test_the_services_own_timeout() -> None:
    """Without a deadline of the client's, the service's applies; the status has message and details."""
    async with open_rpc(request_timeout_ms=500) as rpc:
        rpc.worker.runner.unblocked.clear()
        error = await refusal(ask(rpc))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert reason(rich(error)) == "DEADLINE_EXCEEDED"
        assert retry_s(rich(error)) is None


async def test_a_cancelled_call_leaves_the_queue() -> None:
    """Cancelling a call removes its job from the worker's queue: the device never runs it."""
    async with open_rpc() as rpc:
        first, second = await held(rpc, 1)
        before = len(rpc.worker.runner.batches)
        second.cancel()
        await until(lambda: rpc.waiting == 0)
        await until(lambda: rpc.outcomes("classify", "cancelled") == 1)
        rpc.worker.runner.unblocked.set()
        assert (await first).labels[0].index == 1
        assert (await ask(rpc, 9)).labels[0].index == 9
        assert rpc.worker.runner.batches[before:] == [("fake_classify", 1)]
        assert rpc.in_flight == 0


async def test_a_closed_channel_cancels_its_calls() -> None:
    """Closing a channel cancels all its calls and jobs."""
    async with open_rpc() as rpc:
        (first,) = await held(rpc, 0)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}") as channel:
            classify = stub_of(channel).Classify
            calls = [classify(pb.ClassifyRequest(image=picture())) for _ in range(5)]
            await until(lambda: rpc.waiting == 5)
        assert all(call.cancelled() for call in calls)
        await until(lambda: rpc.waiting == 0 and rpc.in_flight == 1)
        rpc.worker.runner.unblocked.set()
        await first


async def test_a_full_queue_refuses_at_once() -> None:
    """With a full queue a call is RESOURCE_EXHAUSTED with RetryInfo, and those in the queue are answered."""
    async with open_rpc(max_queue_images=1) as rpc:
        calls = await held(rpc, 1)
        error = await refusal(ask(rpc))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        delay_s = retry_s(rich(error))
        assert reason(rich(error)) == "OVERLOADED"
        assert delay_s is not None
        # gRPC's own retries wait equally long.
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == str(round(delay_s * 1000))
        rpc.worker.runner.unblocked.set()
        assert [(await call).labels[0].index for call in calls] == [1, 2]


async def test_messages_in_flight_have_a_budget() -> None:
    """All messages in flight share a limit of bytes. A call over it is refused; it is free again once they end."""
    async with open_rpc(max_in_flight_bytes=300) as rpc:
        assert len(picture()) < 300 < 2 * len(picture())
        (first,) = await held(rpc, 0)
        assert reason(rich(await refusal(ask(rpc)))) == "OVERLOADED"
        rpc.worker.runner.unblocked.set()
        await first
        await ask(rpc)


async def test_a_lost_worker_fails_its_calls_at_once(tmp_path: Path) -> None:
    """When the worker is lost its calls are UNAVAILABLE long before their deadline, and so are the next ones."""
    address = f"ipc://{tmp_path}/w"
    async with open_rpc_at(address, Settings(heartbeat_interval_ms=50, request_timeout_ms=10**6)) as rpc:
        async with ScriptedWorker(address) as worker:
            await worker.introduce()
            await until(lambda: rpc.front_end.engine.readiness().ready)
            call = rpc.stub.Classify(pb.ClassifyRequest(image=picture()))
            await worker.next_job()
        for asked in (call, rpc.stub.Classify(pb.ClassifyRequest(image=picture()))):
            async with asyncio.timeout(20):
                error = await refusal(asked)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert retry_s(rich(error)) is not None


async def test_grpcs_own_retries_heed_the_pushback() -> None:
    """gRPC's own retries wait for the pushback in the status, and succeed once the queue has room."""
    policy = """{"methodConfig": [{"name": [{"service": "convmlp.v1.Vision"}], "retryPolicy": {"maxAttempts": 5,
        "initialBackoff": "100s", "maxBackoff": "100s", "backoffMultiplier": 1,
        "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"]}}]}"""
    async with open_rpc([("grpc.service_config", policy)], max_queue_images=1) as rpc:
        calls = [*await held(rpc, 1), ask(rpc, 3, timeout=60)]  # the policy's own delay would be too long for it
        await until(lambda: rpc.count("convmlp_rejected_total", reason="queue") > 0)
        rpc.worker.runner.unblocked.set()
        assert [(await call).labels[0].index for call in calls] == [1, 2, 3]
