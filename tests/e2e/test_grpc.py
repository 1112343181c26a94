"""gRPC in `convmlp serve`: REST's answers, reflection, metrics, and killed processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import httpx2
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from model.reference import REFERENCE_PICTURE
from service.process import EXIT_CONFIG
from tests.e2e.convmlp_process import RunningService, running_service, started_service
from tests.service.frontend.api.vision.classify_stream import next_of
from tests.service.frontend.grpc_server import health_of
from tests.waiting import PATIENCE_S, eventually

if TYPE_CHECKING:
    from convmlp.v1.vision_pb2_grpc import VisionAsyncStub

PICTURE = REFERENCE_PICTURE.read_bytes()
CLASSIFY_ONLY = ("--models", "convmlp_pets_breed")
OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def pair() -> Iterator[RunningService]:
    """A service with two gRPC processes, whose processes tests may kill: they restart."""
    with running_service(*CLASSIFY_ONLY, "--grpc-processes", "2") as running:
        yield running


@asynccontextmanager
async def connected(service: RunningService) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own: channels of one address share one by default."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(service.grpc_address, options) as channel:
        yield channel


def vision(channel: grpc.aio.Channel) -> VisionAsyncStub:
    stub: VisionAsyncStub = VisionStub(channel)
    return stub


async def test_answers_equal_rests(service: RunningService) -> None:
    """Each task's labels, scores, boxes, areas and masks equal REST's, to REST's digits."""
    async with connected(service) as channel, httpx2.AsyncClient(base_url=service.url, timeout=60) as http:
        calls = vision(channel)
        classified = await calls.Classify(pb.ClassifyRequest(image=PICTURE, top_k=37))
        detected = await calls.Detect(pb.DetectRequest(image=PICTURE, score_threshold=0.05))
        segmented = await calls.Segment(pb.SegmentRequest(image=PICTURE))
        labels, detections, segments = [
            (await http.post(path, content=PICTURE)).json()["results"][0]
            for path in ("/classify?top_k=37", "/detect?score_threshold=0.05", "/segment")
        ]
    for answer, expected in ((classified, labels), (detected, detections), (segmented, segments)):
        assert {"width": answer.image.width, "height": answer.image.height} == expected["image"]
    found = [{"label": one.label, "index": one.index, "score": one.score} for one in classified.labels]
    assert found == [{**one, "score": pytest.approx(one["score"], rel=1e-5)} for one in labels["labels"]]
    assert len(detected.detections) == len(detections["detections"]) > 0
    for detection, other in zip(detected.detections, detections["detections"], strict=True):
        assert (detection.label, detection.index) == (other["label"], other["index"])
        assert detection.score == pytest.approx(other["score"], rel=1e-5)
        for side, value in other["box"].items():
            assert getattr(detection.box, side) == pytest.approx(value, abs=0.006)
    assert [(one.label, one.index, one.area, one.mask.rle.decode()) for one in segmented.segments] == [
        (one["label"], one["index"], one["area"], one["mask"]["counts"]) for one in segments["segments"]
    ]


def test_a_caller_needs_nothing_but_the_address(service: RunningService) -> None:
    """As grpcurl does, a client finds services and messages by reflection, and calls a method."""
    with grpc.insecure_channel(service.grpc_address) as channel:
        described = ProtoReflectionDescriptorDatabase(channel)
        assert set(described.get_services()) >= {"convmlp.v1.Vision", "inference.GRPCInferenceService"}
        pool = DescriptorPool(described)
        method = pool.FindServiceByName("convmlp.v1.Vision").methods_by_name["Classify"]
        call = channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        answer: Any = call(GetMessageClass(method.input_type)(image=PICTURE, top_k=3), timeout=60)
    assert answer.model == "convmlp_pets_breed"
    assert len(answer.labels) == 3
    assert answer.image.width == 451


async def test_metrics_of_all_processes(service: RunningService) -> None:
    """REST's /metrics counts the calls of the gRPC processes."""
    async with connected(service) as channel, httpx2.AsyncClient(base_url=service.url, timeout=60) as http:
        segmented = {"transport": "grpc", "outcome": "ok", "task": "segment"}
        before = await metric(http, "convmlp_requests_total", **segmented)
        await vision(channel).Segment(pb.SegmentRequest(image=PICTURE))

        async def counted() -> bool:
            return await metric(http, "convmlp_requests_total", **segmented) > before

        await eventually(counted)


async def metric(http: httpx2.AsyncClient, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    text = (await http.get("/metrics")).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())


def test_two_services_do_not_share_a_port(service: RunningService) -> None:
    """A second service on the port exits with an error that names it, although gRPC would share the port."""
    port = service.grpc_address.rpartition(":")[2]
    with started_service("--grpc-port", port) as second:
        assert second.process.wait(PATIENCE_S) == EXIT_CONFIG
        (line,) = [line for line in second.lines if line.get("event") == "cannot listen"]
        assert (str(line["port"]), line["error"]) == (port, "Address already in use")
        assert not [line for line in second.lines if line.get("event") == "started"]


async def test_watchers_see_a_killed_worker_and_its_successor(pair: RunningService) -> None:
    """After kill -9 of the worker, watchers get NOT_SERVING, and SERVING once another has passed its self-check."""
    async with connected(pair) as channel:
        watches = [health_of(channel).Watch(HealthCheckRequest(service=name)) for name in ("", CLASSIFY_ONLY[1])]
        async with asyncio.timeout(PATIENCE_S):
            assert [(await watch.read()).status for watch in watches] == [SERVING, SERVING]
            os.kill(pair.pid_of("worker-0"), signal.SIGKILL)
            assert [(await watch.read()).status for watch in watches] == [NOT_SERVING, NOT_SERVING]
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await vision(channel).Classify(pb.ClassifyRequest(image=PICTURE))
            assert refused.value.code() is UNAVAILABLE
            assert [(await watch.read()).status for watch in watches] == [SERVING, SERVING]
        assert (await vision(channel).Classify(pb.ClassifyRequest(image=PICTURE))).labels
        for watch in watches:
            watch.cancel()


async def test_a_killed_front_end_fails_only_its_own_calls(pair: RunningService) -> None:
    """After kill -9 of a front-end under load, its calls fail at once, all others go on, and its clients reconnect."""
    killed = pair.pid_of("grpc-0")
    stop, outcomes, rest_outcomes = asyncio.Event(), list[grpc.StatusCode](), set[int]()
    async with httpx2.AsyncClient(base_url=pair.url, timeout=30) as http:
        # As many that it is next to impossible for one process to have none of them.
        callers = [asyncio.create_task(grpc_load(pair, stop, outcomes)) for _ in range(16)]
        callers.append(asyncio.create_task(rest_load(http, stop, rest_outcomes)))
        async with asyncio.timeout(PATIENCE_S):
            while len(outcomes) < 32:
                await asyncio.sleep(0.05)
            os.kill(killed, signal.SIGKILL)
            while UNAVAILABLE not in outcomes or pair.pid_of("grpc-0") == killed:
                await asyncio.sleep(0.05)
            # Clients that were disconnected reconnect by themselves.
            answered = outcomes.count(OK)
            while outcomes.count(OK) < answered + 64:
                await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*callers)
    assert set(outcomes) == {OK, UNAVAILABLE}
    assert rest_outcomes == {200}


async def grpc_load(service: RunningService, stop: asyncio.Event, outcomes: list[grpc.StatusCode]) -> None:
    """A client that calls repeatedly, over one connection of its own."""
    async with connected(service) as channel:
        while not stop.is_set():
            outcomes.append(await vision(channel).Classify(pb.ClassifyRequest(image=PICTURE), timeout=30).code())
            await asyncio.sleep(0.01)


async def rest_load(http: httpx2.AsyncClient, stop: asyncio.Event, outcomes: set[int]) -> None:
    while not stop.is_set():
        outcomes.add((await http.post("/classify", content=PICTURE)).status_code)


async def test_sigterm_finishes_calls_in_flight() -> None:
    """After SIGTERM under load, every call that had arrived, and every message that a stream had read, is answered."""
    with running_service(*CLASSIFY_ONLY, "--max-stream-in-flight", "8") as service:
        async with connected(service) as channel, httpx2.AsyncClient(base_url=service.url, timeout=60) as http:
            calls = [vision(channel).Classify(pb.ClassifyRequest(image=PICTURE)) for _ in range(16)]
            stream = vision(channel).ClassifyStream()
            for number in range(8):
                await stream.write(pb.ClassifyRequest(id=str(number), image=PICTURE))

            async with asyncio.timeout(PATIENCE_S):
                while await arrived(http) < 24:
                    await asyncio.sleep(0.02)
            service.process.send_signal(signal.SIGTERM)
            assert [await call.code() for call in calls] == [OK] * len(calls)
            replies = [await next_of(stream) for _ in range(8)]
            assert {reply.id for reply in replies} == {str(number) for number in range(8)}
            assert all(reply.labels for reply in replies)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream.read()
            assert ended.value.code() is UNAVAILABLE
            assert "shutting down" in (ended.value.details() or "")
        assert await asyncio.to_thread(service.process.wait, PATIENCE_S) == 0


async def arrived(http: httpx2.AsyncClient) -> float:
    """Images in the service, and images answered."""
    return await metric(http, "convmlp_in_flight_requests") + await metric(http, "convmlp_requests_total")
