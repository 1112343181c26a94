"""Calls that wait: deadlines, cancellation, and workers that are full or lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import cv2
import grpc
import numpy as np
import pytest

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
)
from tests.service.frontend.rest_server import picture
from tests.service.wire.scripted_worker import ScriptedWorker
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

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


async def test_a_callers_deadline_reaches_the_queue(fresh_rpc: RpcWithWorker) -> None:
    """A call whose deadline passes in the queue leaves it and never runs."""
    (first,) = await held(fresh_rpc, 0)
    before = len(fresh_rpc.worker.runner.batches)
    error = await refusal(ask(fresh_rpc, timeout=2.0))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: fresh_rpc.waiting == 0 and fresh_rpc.in_flight == 1)
    await until(lambda: fresh_rpc.outcomes("classify", "deadline-exceeded") == 1)
    fresh_rpc.worker.runner.unblocked.set()
    assert (await first).labels[0].index == 1
    assert len(fresh_rpc.worker.runner.batches) == before


async def test_a_deadline_that_passes_anywhere_is_counted_as_one() -> None:
    """A call that gRPC cancels at its deadline, in decoding or on the device, counts as deadline-exceeded, not as
    cancelled."""
    _, data = cv2.imencode(".png", np.zeros((7000, 7000), np.uint8))
    async with open_rpc(prepare_threads=1) as rpc:
        rpc.worker.runner.unblocked.clear()
        # One: of several, those that would be decoded too late are refused, as soon as the time of one is known.
        error = await refusal(rpc.stub.Classify(pb.ClassifyRequest(image=data.tobytes()), timeout=1.0))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: rpc.outcomes("classify", "deadline-exceeded") == 1)


async def test_a_deadline_in_reach_is_met(fresh_rpc: RpcWithWorker) -> None:
    """A call that can be answered before its deadline is not refused."""
    assert (await ask(fresh_rpc, 5, timeout=30)).labels[0].index == 5


async def test_a_cancelled_call_leaves_the_queue(fresh_rpc: RpcWithWorker) -> None:
    """Cancelling a call removes its job from the worker's queue: the device never runs it."""
    first, second = await held(fresh_rpc, 1)
    before = len(fresh_rpc.worker.runner.batches)
    second.cancel()
    await until(lambda: fresh_rpc.waiting == 0)
    await until(lambda: fresh_rpc.outcomes("classify", "cancelled") == 1)
    fresh_rpc.worker.runner.unblocked.set()
    assert (await first).labels[0].index == 1
    assert (await ask(fresh_rpc, 9)).labels[0].index == 9
    assert fresh_rpc.worker.runner.batches[before:] == [("fake_classify", 1)]
    assert fresh_rpc.in_flight == 0


async def test_a_closed_channel_cancels_its_calls(fresh_rpc: RpcWithWorker) -> None:
    """Closing a channel cancels all its calls and jobs."""
    (first,) = await held(fresh_rpc, 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{fresh_rpc.port}") as channel:
        classify = stub_of(channel).Classify
        calls = [classify(pb.ClassifyRequest(image=picture())) for _ in range(5)]
        await until(lambda: fresh_rpc.waiting == 5)
    assert all(call.cancelled() for call in calls)
    await until(lambda: fresh_rpc.waiting == 0 and fresh_rpc.in_flight == 1)
    fresh_rpc.worker.runner.unblocked.set()
    await first


@pytest.mark.settings(max_queue_images=1)
async def test_a_full_queue_refuses_at_once(fresh_rpc: RpcWithWorker) -> None:
    """With a full queue a call is RESOURCE_EXHAUSTED with RetryInfo, and those in the queue are answered."""
    calls = await held(fresh_rpc, 1)
    error = await refusal(ask(fresh_rpc))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    delay_s = retry_s(rich(error))
    assert reason(rich(error)) == "OVERLOADED"
    assert delay_s is not None
    # gRPC's own retries wait equally long.
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == str(round(delay_s * 1000))
    fresh_rpc.worker.runner.unblocked.set()
    assert [(await call).labels[0].index for call in calls] == [1, 2]


@pytest.mark.settings(max_in_flight_bytes=300)
async def test_messages_in_flight_have_a_budget(fresh_rpc: RpcWithWorker) -> None:
    """All messages in flight share a limit of bytes. A call over it is refused; it is free again once they end."""
    assert len(picture()) < 300 < 2 * len(picture())
    (first,) = await held(fresh_rpc, 0)
    assert reason(rich(await refusal(ask(fresh_rpc)))) == "OVERLOADED"
    fresh_rpc.worker.runner.unblocked.set()
    await first
    await ask(fresh_rpc)


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
            async with asyncio.timeout(PATIENCE_S):
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
