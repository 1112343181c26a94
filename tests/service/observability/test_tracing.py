"""One trace for each request, from the front-end through the worker's queue and batch to the answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as oip
from service.frontend.api.oip.generated.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from tests.service.frontend.grpc_server import refusal
from tests.service.frontend.rest_server import picture
from tests.service.observability.collector import INTERNAL, SERVER, ReceivedSpan, Tree
from tests.service.observability.span_capture import IMAGE, POISON, CallerTrace, Traced, caller_trace
from tests.waiting import until

if TYPE_CHECKING:
    from convmlp.v1.vision_pb2_grpc import VisionAsyncStub

pytestmark = pytest.mark.asyncio(loop_scope="module")


def vision_of(service: Traced) -> VisionAsyncStub:
    stub: VisionAsyncStub = VisionStub(service.channel)
    return stub


async def until_waiting(service: Traced, images: int) -> None:
    """Wait until so many images wait for the device."""
    metric = ("convmlp_queue_depth", {"model": "fake_classify"})
    await until(lambda: service.worker.registry.get_sample_value(*metric) == images)


def inference_of(service: Traced) -> Any:  # noqa: ANN401  (its type stubs know no asyncio)
    return GRPCInferenceServiceStub(service.channel)


def infer_request() -> oip.ModelInferRequest:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 40, 40, 3])
    pixels = np.full((40, 40, 3), 9, np.uint8).tobytes()
    return oip.ModelInferRequest(model_name="fake_classify", inputs=[tensor], raw_input_contents=[pixels])


async def check_image(tree: Tree, predict: ReceivedSpan, model: str, size: int = 1) -> None:
    """The stages of one image, which share a batch of `size` with none but the device's."""
    stages = tree.children(predict)
    assert set(stages) == {"decode", "queue", "infer", "post"}
    assert predict.attributes["convmlp.model"] == model
    assert {name: stages[name].service for name in stages} == {
        "decode": predict.service,
        "queue": "convmlp-worker",
        "infer": "convmlp-worker",
        "post": predict.service,
    }
    assert {span.kind for span in (predict, *stages.values())} == {INTERNAL}
    assert stages["queue"].end_ns == stages["infer"].start_ns
    batch = await tree.batch_of(stages["infer"])
    assert (batch.name, batch.service, batch.parent) == ("batch", "convmlp-worker", "")
    assert batch.trace != predict.trace
    assert (predict.trace, predict.id) in batch.links
    assert batch.attributes["convmlp.model"] == model
    assert batch.attributes["convmlp.device"] == "cpu"
    assert batch.attributes["convmlp.batch.size"] >= size


async def test_a_request_over_rest_is_one_trace(service: Traced) -> None:
    """The caller's span is the parent, down to the worker's spans, and the batch is linked with the request."""
    caller = caller_trace()
    headers = {**caller.headers, "tracestate": "vendor=word", "x-request-id": "rest-1"}
    answer = await service.http.post("/classify?top_k=3", content=picture(9), headers=headers)
    assert answer.status_code == 200
    tree = await service.collector.named(caller.trace, "POST /classify", *IMAGE)
    request = tree["POST /classify"]
    assert (request.parent, request.kind, request.service) == (caller.span, SERVER, "convmlp-rest")
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "url.scheme": "http",
        "convmlp.request_id": "rest-1",
        "convmlp.task": "classify",
        "convmlp.model": "fake_classify",
        "convmlp.outcome": "ok",
    }
    assert set(tree.children(request)) == {"predict"}
    await check_image(tree, tree["predict"], "fake_classify")
    assert {span.state for span in tree.spans} == {"vendor=word"}
    assert {span.error for span in tree.spans} == {""}


async def test_durations_have_exemplars(service: Traced) -> None:
    """OpenMetrics has the trace of a request with its duration, stages and outcome, if the trace is recorded."""
    caller, unsampled = caller_trace(), replace(caller_trace(), sampled=False)
    for one in (caller, unsampled):
        await service.http.post("/classify", content=picture(9), headers=one.headers)
    headers = {"Accept": "application/openmetrics-text"}
    text = (await service.http.get("/metrics", headers=headers)).text
    found = {
        sample.name
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar and sample.exemplar.labels["trace_id"] == caller.trace
    }
    durations = (f"convmlp_{name}duration_seconds_bucket" for name in ("request_", "model_request_", "stage_"))
    assert found == {"convmlp_requests_total", *durations}
    assert unsampled.trace not in text
    queue, infer = worker_exemplars(service, "queue"), worker_exemplars(service, "infer")
    assert caller.trace in queue
    tree = await service.collector.named(caller.trace, "POST /classify", *IMAGE)
    assert (await tree.batch_of(tree["infer"])).trace in infer
    assert unsampled.trace not in queue | infer


def worker_exemplars(service: Traced, stage: str) -> set[str]:
    """The traces that the worker's metrics have of a stage."""
    text = openmetrics.generate_latest(service.worker.registry).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        sample.exemplar.labels["trace_id"]
        for sample in samples
        if sample.exemplar and sample.labels.get("stage") == stage
    }


async def test_a_call_over_grpc_is_one_trace(service: Traced) -> None:
    """A gRPC call is one trace as over REST; the caller's context is in its metadata."""
    caller = caller_trace()
    await vision_of(service).Detect(pb.DetectRequest(image=picture(9), id="rpc-1"), metadata=caller.metadata)
    tree = await service.collector.named(caller.trace, "convmlp.v1.Vision/Detect", *IMAGE)
    call = tree["convmlp.v1.Vision/Detect"]
    assert (call.parent, call.kind, call.service) == (caller.span, SERVER, "convmlp-grpc")
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "convmlp.v1.Vision/Detect",
        "rpc.response.status_code": "OK",
        "convmlp.request_id": "rpc-1",
        "convmlp.task": "detect",
        "convmlp.model": "fake_detect",
        "convmlp.outcome": "ok",
    }
    assert set(tree.children(call)) == {"predict"}
    await check_image(tree, tree["predict"], "fake_detect")


async def test_the_open_inference_protocol_is_traced_alike(service: Traced) -> None:
    """Open Inference requests are traced over HTTP, by the route without the model's name, and over gRPC."""
    over_http, over_grpc = caller_trace(), caller_trace()
    body = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [9] * 12}]}
    path = "/v2/models/fake_classify/infer"
    assert (await service.http.post(path, json=body, headers=over_http.headers)).status_code == 200
    await inference_of(service).ModelInfer(infer_request(), metadata=over_grpc.metadata)
    for caller, name in (
        (over_http, "POST /v2/models/{name}/infer"),
        (over_grpc, "inference.GRPCInferenceService/ModelInfer"),
    ):
        tree = await service.collector.named(caller.trace, name, *IMAGE)
        assert tree[name].parent == caller.span
        await check_image(tree, tree["predict"], "fake_classify")


async def test_hugging_face_and_other_routes_are_traced(service: Traced) -> None:
    """Every route has a span; a route that predicts nothing has no other."""
    predicting, asking, nowhere = caller_trace(), caller_trace(), caller_trace()
    path = "/compat/huggingface/classify"
    await service.http.post(path, content=picture(9), headers=predicting.headers)
    await service.http.get("/models/fake_detect", headers=asking.headers)
    await service.http.get("/no/such/path", headers=nowhere.headers)
    tree = await service.collector.named(predicting.trace, f"POST {path}", *IMAGE)
    await check_image(tree, tree["predict"], "fake_classify")
    await service.collector.named(asking.trace, "GET /models/{name}")
    lost = (await service.collector.named(nowhere.trace, "GET"))["GET"]
    assert "http.route" not in lost.attributes
    assert lost.attributes["error.type"] == "not-found"


async def test_each_image_of_a_request_has_its_span(service: Traced) -> None:
    """Each of several images is a step of its request, with its own id; a bad one fails alone."""
    caller = caller_trace()
    files = [("image", picture(9)), ("image", b"no picture"), ("image", picture(10))]
    headers = {**caller.headers, "x-request-id": "many"}
    assert (await service.http.post("/classify", files=files, headers=headers)).status_code == 200
    tree = await service.collector.named(caller.trace, "POST /classify", *IMAGE, *IMAGE, "predict")
    predicts = {span.attributes["convmlp.request_id"]: span for span in tree.all("predict")}
    assert {span.parent for span in predicts.values()} == {tree["POST /classify"].id}
    assert {name: span.error for name, span in predicts.items()} == {
        "many-0": "",
        "many-1": "unsupported-format",
        "many-2": "",
    }
    assert tree.children(predicts["many-1"]) == {}
    for name in ("many-0", "many-2"):
        await check_image(tree, predicts[name], "fake_classify")


async def test_a_batch_is_linked_with_all_its_requests(service: Traced) -> None:
    """Requests of both transports that shared the device link to one batch, which links to each of them."""
    runner = service.worker.runner
    held = runner.block()
    callers = [caller_trace() for _ in range(4)]

    async def ask(at: int, caller: CallerTrace) -> None:
        if at < 2:
            await service.http.post("/classify", content=picture(at), headers=caller.headers)
        else:
            await vision_of(service).Classify(pb.ClassifyRequest(image=picture(at)), metadata=caller.metadata)

    try:
        # A self-check holds the device, and there is one at a time: the requests below wait together.
        await until(held.is_set)
        asking = [asyncio.create_task(ask(at, caller)) for at, caller in enumerate(callers)]
        await until_waiting(service, len(callers))
    finally:
        runner.unblocked.set()
    await asyncio.gather(*asking)
    batches = []
    for caller, name in zip(callers, ["POST /classify"] * 2 + ["convmlp.v1.Vision/Classify"] * 2, strict=True):
        tree = await service.collector.named(caller.trace, name, *IMAGE)
        await check_image(tree, tree["predict"], "fake_classify", len(callers))
        batches.append(await tree.batch_of(tree["infer"]))
    assert len({one.id for one in batches}) == 1
    assert {trace for trace, _ in batches[0].links} >= {caller.trace for caller in callers}


async def test_a_stream_has_a_span_and_each_of_its_messages(service: Traced) -> None:
    """Messages are children of their call, and images of their messages; an error is in its message alone."""
    caller = caller_trace()
    requests = [pb.ClassifyRequest(id=f"m{at}", image=picture(grey)) for at, grey in enumerate((9, POISON, 10))]
    async for _ in vision_of(service).ClassifyStream(iter(requests), metadata=caller.metadata):
        pass
    name = "convmlp.v1.Vision/ClassifyStream"
    tree = await service.collector.named(caller.trace, name, *IMAGE * 2, *IMAGE[:-1], *["message"] * 3)
    call = tree[name]
    assert (call.parent, call.error) == (caller.span, "")
    messages = {span.attributes["convmlp.request_id"]: span for span in tree.all("message")}
    assert {span.parent for span in messages.values()} == {call.id}
    assert {name: span.error for name, span in messages.items()} == {"m0": "", "m1": "internal", "m2": ""}
    for message in (messages["m0"], messages["m2"]):
        await check_image(tree, tree.children(message)["predict"], "fake_classify")


async def test_open_inference_streams_are_traced_alike(service: Traced) -> None:
    """ModelStreamInfer has one span, and one for each message."""
    caller = caller_trace()
    async for reply in inference_of(service).ModelStreamInfer(iter([infer_request()] * 2), metadata=caller.metadata):
        assert not reply.error_message
    name = "inference.GRPCInferenceService/ModelStreamInfer"
    tree = await service.collector.named(caller.trace, name, *IMAGE * 2, "message", "message")
    assert {span.parent for span in tree.all("message")} == {tree[name].id}


@pytest.mark.parametrize(
    ("path", "image", "status", "code", "is_failure"),
    [
        ("/classify", b"no picture", 415, "unsupported-format", False),
        ("/classify", picture(9)[:60], 400, "image-undecodable", False),
        ("/classify?top_k=0", picture(9), 422, "bad-parameter", False),
        ("/classify?model=nonesuch", picture(9), 404, "model-not-found", False),
        ("/classify", picture(POISON), 500, "internal", True),
    ],
)
async def test_errors_have_their_code(
    service: Traced, path: str, image: bytes, status: int, code: str, is_failure: bool
) -> None:
    """Every error has its domain code; by the conventions only the service's own are failures of a server's span."""
    caller = caller_trace()
    answer = await service.http.post(path, content=image, headers=caller.headers)
    assert answer.status_code == status
    spans = await service.collector.until(lambda spans: _has(spans, caller, "POST /classify"))
    (request,) = [span for span in spans if span.trace == caller.trace and span.name == "POST /classify"]
    assert request.attributes["error.type"] == request.attributes["convmlp.outcome"] == code
    assert request.attributes["http.response.status_code"] == status
    assert request.error == (code if is_failure else "")


async def test_a_device_error_is_in_the_spans_that_it_broke(service: Traced) -> None:
    """The batch, the image's time on the device and the request all end with the error; the worker's log names it."""
    caller = caller_trace()
    request = pb.ClassifyRequest(image=picture(POISON), id="poisoned")
    with capture_logs() as lines:
        error = await refusal(vision_of(service).Classify(request, metadata=caller.metadata))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert ["poisoned"] in [line["request_ids"] for line in lines if line["event"] == "batch failed"]
    name = "convmlp.v1.Vision/Classify"
    tree = await service.collector.named(caller.trace, name, *IMAGE[:-1])
    errors = {span.name: span.error for span in tree.spans}
    assert errors == {name: "internal", "predict": "internal", "decode": "", "queue": "", "infer": "internal"}
    assert (await tree.batch_of(tree["infer"])).error == "internal"


async def test_a_deadline_that_passes_in_the_queue_is_in_the_spans(service: Traced) -> None:
    """A request whose deadline passes in the queue ends with that error and has no time on the device."""
    runner = service.worker.runner
    runner.unblocked.clear()
    before = len(runner.batches)
    caller = caller_trace()
    try:
        holding = asyncio.ensure_future(service.http.post("/classify", content=picture(1)))
        await until(lambda: len(runner.batches) > before)  # the device is taken
        headers = {**caller.headers, "x-request-timeout-ms": "2000"}
        answer = await service.http.post("/classify", content=picture(9), headers=headers)
    finally:
        runner.unblocked.set()
    await holding
    assert answer.status_code == 504
    await service.collector.until(lambda spans: _has(spans, caller, "POST /classify"))
    errors = {span.name: span.error for span in service.collector.trace(caller.trace)}
    assert errors["POST /classify"] == errors["predict"] == "deadline-exceeded"
    assert "infer" not in errors


async def test_a_caller_that_leaves_is_no_failure_of_the_service(service: Traced) -> None:
    """The trace of a caller that disconnects ends as cancelled, without an error."""
    runner = service.worker.runner
    held = runner.block()
    caller = caller_trace()
    try:
        await until(held.is_set)  # a self-check holds the device
        asking = asyncio.create_task(service.http.post("/classify", content=picture(9), headers=caller.headers))
        await until_waiting(service, 1)
        asking.cancel()
        await asyncio.wait([asking])
        await service.collector.until(lambda spans: _has(spans, caller, "POST /classify"))
    finally:
        runner.unblocked.set()
    (request,) = [one for one in service.collector.trace(caller.trace) if one.name == "POST /classify"]
    assert (request.attributes["convmlp.outcome"], request.error) == ("cancelled", "")
    assert "http.response.status_code" not in request.attributes


async def test_what_its_caller_does_not_record_is_not_recorded(service: Traced) -> None:
    """The flag in the caller's context decides, on every transport and in the worker."""
    unsampled, sampled = [caller_trace(sampled=False) for _ in range(3)], caller_trace()
    await service.http.post("/classify", content=picture(9), headers=unsampled[0].headers)
    await vision_of(service).Classify(pb.ClassifyRequest(image=picture(9)), metadata=unsampled[1].metadata)
    await inference_of(service).ModelInfer(infer_request(), metadata=unsampled[2].metadata)
    await service.http.post("/classify", content=picture(9), headers=sampled.headers)
    await vision_of(service).Classify(pb.ClassifyRequest(image=picture(9)), metadata=sampled.metadata)
    # Spans are sent in order: spans of the requests before would be here by now.
    await service.collector.named(sampled.trace, "POST /classify", "convmlp.v1.Vision/Classify", *IMAGE, *IMAGE)
    traces = {span.trace for span in service.collector.spans}
    traces |= {trace for span in service.collector.spans for trace, _ in span.links}
    assert traces.isdisjoint(caller.trace for caller in unsampled)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", "00-xyz")],
        [("traceparent", f"00-{'0' * 32}-{'1' * 16}-01")],
        [("traceparent", f"00-{'a' * 32}-{'1' * 16}-01"), ("traceparent", f"00-{'b' * 32}-{'1' * 16}-01")],
        [("traceparent", f"00-{'a' * 32}-{'1' * 16}-01" + "0" * 600)],
    ],
    ids=["none", "malformed", "zero", "two", "endless"],
)
async def test_without_a_sound_context_a_trace_begins_here(
    service: Traced, headers: list[tuple[str, str]], request: pytest.FixtureRequest
) -> None:
    """A request with a broken context gets a trace of its own, as one without a context."""
    request_id = f"from-here-{request.node.callspec.id}"
    sent = [*headers, ("x-request-id", request_id)]
    assert (await service.http.post("/classify", content=picture(9), headers=sent)).status_code == 200

    def ours(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
        wanted = [span for span in spans if span.attributes.get("convmlp.request_id") == request_id]
        return [span for span in wanted if span.name == "POST /classify"]

    (root,) = ours(await service.collector.until(lambda spans: bool(ours(spans))))
    assert root.parent == ""
    assert root.trace not in ("a" * 32, "b" * 32, "0" * 32)


async def test_probes_and_self_checks_are_not_traced(service: Traced) -> None:
    """Probes and self-checks have no spans, neither in front-ends nor in the worker."""
    runner = service.worker.runner
    before = len(runner.batches)
    await until(lambda: len(runner.batches) > before + 10)  # the worker checks itself
    caller = caller_trace()
    for path in ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"):
        await service.http.get(path, headers=caller.headers)
    await inference_of(service).ServerReady(oip.ServerReadyRequest(), metadata=caller.metadata)
    after = caller_trace()
    await service.http.post("/classify", content=picture(9), headers=after.headers)
    await vision_of(service).Classify(pb.ClassifyRequest(image=picture(9)), metadata=after.metadata)
    await service.collector.named(after.trace, "POST /classify", "convmlp.v1.Vision/Classify", *IMAGE, *IMAGE)
    assert service.collector.trace(caller.trace) == []
    batches = [span for span in service.collector.spans if span.name == "batch"]
    assert batches
    assert all(batch.links for batch in batches)


def _has(spans: list[ReceivedSpan], caller: CallerTrace, name: str) -> bool:
    return any(span.trace == caller.trace and span.name == name for span in spans)
