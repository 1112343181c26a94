"""Every refusal counts once, by its reason, in every API: as often as its outcome."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from convmlp.v1 import vision_pb2 as pb
from model.types import Task
from service.errors import Refusal
from service.settings import Settings
from tests.fakes import FakeWorker, fake_worker
from tests.service.frontend.api.oip.oip_client import (
    OipGrpcClient,
    OipRequest,
    encoded_request,
    grpc_request,
    http_body,
)
from tests.service.frontend.both_transports import Pair, open_pair_at
from tests.service.frontend.grpc_server import stub_of
from tests.service.frontend.rest_server import picture
from tests.waiting import until

PICTURE = picture()
INFER: OipRequest = encoded_request("fake_classify", PICTURE)
REFUSALS = {"unauthenticated", "rate-limited", "overloaded", "deadline-exceeded", "unavailable"}
"""Outcomes that are refusals, not faults of the image."""

Route = Callable[[Pair, float | None], Coroutine[Any, Any, None]]
"""Sends a picture to be classified, with a deadline in seconds or without, and returns after any answer."""


async def rest(pair: Pair, timeout_s: float | None) -> None:
    await pair.http.post("/classify", content=PICTURE, headers=_deadline(timeout_s))


async def hugging_face(pair: Pair, timeout_s: float | None) -> None:
    await pair.http.post("/compat/huggingface/classify", content=PICTURE, headers=_deadline(timeout_s))


async def open_inference_http(pair: Pair, timeout_s: float | None) -> None:
    body, headers = http_body(INFER)
    await pair.http.post("/v2/models/fake_classify/infer", content=body, headers={**headers, **_deadline(timeout_s)})


async def rpc(pair: Pair, timeout_s: float | None) -> None:
    async with _own_connection(pair) as channel:
        await _answered(stub_of(channel).Classify(pb.ClassifyRequest(image=PICTURE), timeout=timeout_s))


async def open_inference_grpc(pair: Pair, timeout_s: float | None) -> None:
    async with _own_connection(pair) as channel:
        await _answered(OipGrpcClient(channel).stub.ModelInfer(grpc_request(INFER), timeout=timeout_s))


def _own_connection(pair: Pair) -> grpc.aio.Channel:
    """A connection for one call: gRPC itself limits the calls at once on one connection to `max_in_flight`."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{pair.rpc.port}", [("grpc.use_local_subchannel_pool", 1)])


async def _answered(call: Awaitable[object]) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call


ROUTES: dict[str, Route] = {
    "rest": rest,
    "huggingface": hugging_face,
    "oip-http": open_inference_http,
    "grpc": rpc,
    "oip-grpc": open_inference_grpc,
}


def _deadline(timeout_s: float | None) -> dict[str, str]:
    return {} if timeout_s is None else {"X-Request-Timeout-Ms": f"{1000 * timeout_s:.0f}"}


def registry_of(pair: Pair, route: str) -> CollectorRegistry:
    return (pair.rpc.front_end if "grpc" in route else pair.rest).registry


def rejected(registry: CollectorRegistry) -> dict[str, float]:
    """Refusals by reason, without the zeros."""
    found = {reason: registry.get_sample_value("convmlp_rejected_total", {"reason": reason}) or 0 for reason in Refusal}
    return {reason.value: count for reason, count in found.items() if count}


def refused_outcomes(registry: CollectorRegistry) -> float:
    """Requests that ended in a refusal."""
    samples = (sample for family in registry.collect() for sample in family.samples)
    return sum(
        sample.value
        for sample in samples
        if sample.name == "convmlp_requests_total" and sample.labels["outcome"] in REFUSALS
    )


async def settled(registry: CollectorRegistry, reason: Refusal) -> None:
    """Wait for the server's count: gRPC reports a passed deadline to its caller before the server notices it."""
    await until(lambda: bool(rejected(registry)))
    await until(lambda: refused_outcomes(registry) == sum(rejected(registry).values()))
    assert rejected(registry) == {reason: 1}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("reason", "overrides"),
    [
        (Refusal.CREDENTIALS, {}),
        (Refusal.RATE, {"rate_limit_per_s": 0.001, "rate_limit_burst": 1}),
        (Refusal.BODIES, {"max_in_flight_bytes": 16}),
        (Refusal.UNAVAILABLE, {}),
        (Refusal.DEADLINE, {}),
        (Refusal.IN_FLIGHT, {"max_in_flight": 1}),
        (Refusal.QUEUE, {"max_queue_images": 1}),
    ],
)
async def test_a_refusal_is_counted_once(
    reason: Refusal, overrides: dict[str, Any], route: str, tmp_path: Path
) -> None:
    """A refused request adds one to `rejected_total`, by its reason, and one to `requests_total`."""
    if reason is Refusal.CREDENTIALS:
        (tmp_path / "keys").write_text("someone 0123456789abcdef\n")
        overrides = {"api_keys_file": tmp_path / "keys"}
    settings = Settings(heartbeat_interval_ms=50, **overrides)
    ask = ROUTES[route]
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker:
        address = f"{worker.address}-nobody" if reason is Refusal.UNAVAILABLE else worker.address
        async with open_pair_at(address, settings) as pair, asyncio.TaskGroup() as held:
            registry = registry_of(pair, route)
            if reason is not Refusal.UNAVAILABLE:
                await until(lambda: pair.ready)
            if reason is Refusal.RATE:
                await ask(pair, None)  # the one that its burst allows
            if reason in HELD:
                worker.runner.unblocked.clear()
                before = len(worker.runner.batches)
                for number in range(1, HELD[reason] + 1):
                    held.create_task(ask(pair, None))
                    # One at a time: the first gets to the device, the next waits in the queue.
                    await until(partial(_there, worker, before + number))
            await ask(pair, 1.0 if reason is Refusal.DEADLINE else None)
            await settled(registry, reason)
            worker.runner.unblocked.set()


HELD = {Refusal.DEADLINE: 1, Refusal.IN_FLIGHT: 1, Refusal.QUEUE: 2}
"""Images that are held at the device and in the queue while another one is refused."""


def _there(worker: FakeWorker, images: int) -> bool:
    """Whether so many images have reached the device or the queue since the start."""
    waiting = worker.registry.get_sample_value("convmlp_queue_depth", {"model": "fake_classify"}) or 0
    return len(worker.runner.batches) + waiting >= images


def _in_flight(registry: CollectorRegistry) -> float:
    return registry.get_sample_value("convmlp_in_flight_requests") or 0


async def test_each_image_of_a_request_counts() -> None:
    """Of four images in one request two are refused, each in its place: two refusals, and the request is ok."""
    settings = Settings(heartbeat_interval_ms=50, max_in_flight=2)
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker, open_pair_at(worker.address, settings) as pair:
        await until(lambda: pair.ready)
        reply = await pair.http.post("/classify", files=[("image", PICTURE)] * 4)
        results = reply.json()["results"]
        assert [("error" in one) for one in results] == [False, False, True, True]
        assert rejected(pair.rest.registry) == {"in_flight": 2}
        assert refused_outcomes(pair.rest.registry) == 0


async def test_a_request_that_is_refused_as_a_whole_counts_all_its_images() -> None:
    """If none of four images is admitted, the request's own error is one of four refusals, not a fifth."""
    settings = Settings(heartbeat_interval_ms=50, max_in_flight=1)
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker, open_pair_at(worker.address, settings) as pair:
        await until(lambda: pair.ready)
        worker.runner.unblocked.clear()
        held = asyncio.create_task(pair.http.post("/classify", content=PICTURE))
        await until(lambda: _in_flight(pair.rest.registry) == 1)
        reply = await pair.http.post("/classify", files=[("image", PICTURE)] * 4)
        assert reply.status_code == 503
        assert rejected(pair.rest.registry) == {"in_flight": 4}
        assert refused_outcomes(pair.rest.registry) == 1
        worker.runner.unblocked.set()
        assert (await held).status_code == 200
