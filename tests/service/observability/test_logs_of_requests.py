"""The log of a real process has one line for each request, with the ids of the request and its trace."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as oip
from service.frontend.api.oip.generated.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from service.settings import Settings
from tests.e2e.convmlp_process import RunningService, started
from tests.fakes import fake_worker
from tests.service.frontend.grpc_server import health_of, refusal
from tests.service.frontend.rest_server import picture
from tests.service.observability.span_capture import Traced, caller_trace, front_end, stopped
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

STAGES = {"decode_ms", "queue_ms", "infer_ms", "post_ms", "total_ms"}

Lines = list[dict[str, Any]]


async def lines_of(process: RunningService, wanted: Callable[[dict[str, Any]], bool], count: int = 1) -> Lines:
    """Wait until there are `count` wanted lines, and return them."""
    async with asyncio.timeout(PATIENCE_S):
        while len(found := [line for line in process.lines if wanted(line)]) < count:
            await asyncio.sleep(0.01)
    return found


async def line_of(process: RunningService, request_id: str, event: str = "request") -> dict[str, Any]:
    (line,) = await lines_of(process, lambda line: line.get("request_id") == request_id and line["event"] == event)
    return line


async def test_a_request_has_one_line(service: Traced) -> None:
    """A REST request's line has caller, task, model, outcome, bytes, milliseconds by stage, and its trace's ids."""
    caller = caller_trace()
    image = picture(9)
    headers = {**caller.headers, "x-request-id": "rest-1"}
    answer = await service.http.post("/classify?top_k=2", content=image, headers=headers)
    line = await line_of(service.rest, "rest-1")
    assert {name: line[name] for name in line if name not in {*STAGES, "timestamp", "span_id"}} == {
        "event": "request",
        "level": "info",
        "role": "rest",
        "request_id": "rest-1",
        "trace_id": caller.trace,
        "transport": "rest",
        "method": "POST",
        "path": "/classify",
        "caller": "127.0.0.1",
        "task": "classify",
        "model": "fake_classify",
        "outcome": "ok",
        "status": 200,
        "request_bytes": len(image),
        "reply_bytes": len(answer.content),
    }
    assert all(line[stage] >= 0 for stage in STAGES)
    spans = await service.collector.until(lambda spans: any(span.id == line["span_id"] for span in spans))
    assert [span.name for span in spans if span.id == line["span_id"]] == ["POST /classify"]


async def test_a_call_has_one_line(service: Traced) -> None:
    """A gRPC call's line has the same fields, under the id in the message."""
    caller = caller_trace()
    request = pb.ClassifyRequest(image=picture(9), id="rpc-1")
    reply = await VisionStub(service.channel).Classify(request, metadata=caller.metadata)
    line = await line_of(service.rpc, "rpc-1")
    assert (line["transport"], line["method"]) == ("grpc", "convmlp.v1.Vision/Classify")
    assert (line["outcome"], line["status"], line["trace_id"]) == ("ok", "OK", caller.trace)
    assert (line["request_bytes"], line["reply_bytes"]) == (request.ByteSize(), reply.ByteSize())
    assert line.keys() >= STAGES


async def test_errors_are_lines_as_well(service: Traced) -> None:
    """A failed request's line has the error's code and the transport's status, and no time of stages that never ran."""
    await service.http.post("/detect?top_k=0", content=picture(9), headers={"x-request-id": "bad-1"})
    line = await line_of(service.rest, "bad-1")
    assert (line["task"], line["outcome"], line["status"]) == ("detect", "bad-parameter", 422)
    assert "infer_ms" not in line
    await service.http.get("/nowhere", headers={"x-request-id": "lost-1"})
    line = await line_of(service.rest, "lost-1")
    assert (line["path"], line["outcome"], line["status"]) == ("/nowhere", "not-found", 404)
    vision = VisionStub(service.channel)
    await refusal(vision.Segment(pb.SegmentRequest(image=b"no picture", id="bad-2")))
    line = await line_of(service.rpc, "bad-2")
    assert (line["task"], line["outcome"], line["status"]) == ("segment", "unsupported-format", "INVALID_ARGUMENT")


async def test_a_malformed_request_is_no_more_than_its_line(service: Traced) -> None:
    """Libraries add no line of their own for what a caller got wrong."""
    headers = {"x-request-id": "broken", "content-type": "multipart/form-data; boundary=b"}
    assert (await service.http.post("/classify", content=b"--x\r\n", headers=headers)).status_code == 400
    await line_of(service.rest, "broken")
    assert [line["event"] for line in service.rest.lines if line.get("request_id") == "broken"] == ["request"]


async def test_each_message_of_a_stream_is_a_line_and_the_call_another(service: Traced) -> None:
    """Each message of a stream has a line; the call's line adds up their bytes."""
    metadata = (("x-request-id", "stream-1"), *caller_trace().metadata)
    requests = [pb.ClassifyRequest(id="one", image=picture(9)), pb.ClassifyRequest(image=b"no picture")]
    async for _ in VisionStub(service.channel).ClassifyStream(iter(requests), metadata=metadata):
        pass
    call = await line_of(service.rpc, "stream-1")
    first, second = await line_of(service.rpc, "one", "message"), await line_of(service.rpc, "stream-1-1", "message")
    assert [one["outcome"] for one in (call, first, second)] == ["ok", "ok", "unsupported-format"]
    assert [one["request_bytes"] for one in (first, second)] == [request.ByteSize() for request in requests]
    for name in ("request_bytes", "reply_bytes"):
        assert call[name] == first[name] + second[name]
    assert len({one["span_id"] for one in (call, first, second)}) == 3
    assert len({one["trace_id"] for one in (call, first, second)}) == 1


async def test_unrecorded_requests_have_no_trace_in_their_lines(service: Traced) -> None:
    """An unrecorded request's line has no trace, even after a recorded one on the same connection."""
    headers = {**caller_trace().headers, "x-request-id": "recorded"}
    unrecorded = {**caller_trace(sampled=False).headers, "x-request-id": "unrecorded"}
    await service.http.post("/classify", content=picture(9), headers=headers)
    await service.http.post("/classify", content=picture(9), headers=unrecorded)
    assert "trace_id" in await line_of(service.rest, "recorded")
    assert (await line_of(service.rest, "unrecorded")).keys().isdisjoint({"trace_id", "span_id"})


async def test_requests_sent_at_once_on_one_connection_are_kept_apart(service: Traced) -> None:
    """Each of two pipelined requests has its own ids."""
    recorded, unrecorded = caller_trace(), caller_trace(sampled=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(service.rest.url.rpartition(":")[2]))
    for name, caller in (("pipe-1", recorded), ("pipe-2", unrecorded)):
        context = caller.headers["traceparent"]
        writer.write(
            f"GET /models HTTP/1.1\r\nhost: x\r\nx-request-id: {name}\r\ntraceparent: {context}\r\n\r\n".encode()
        )
    first, second = await line_of(service.rest, "pipe-1"), await line_of(service.rest, "pipe-2")
    assert first["trace_id"] == recorded.trace
    assert "trace_id" not in second
    writer.close()
    await writer.wait_closed()
    del reader


async def test_probes_are_no_lines(service: Traced) -> None:
    """Requests for health and metrics have no lines."""
    for path in ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"):
        assert (await service.http.get(path, headers={"x-request-id": "probe"})).status_code == 200
    probe = (("x-request-id", "probe"),)
    inference: Any = GRPCInferenceServiceStub(service.channel)
    await inference.ServerLive(oip.ServerLiveRequest(), metadata=probe)
    await health_of(service.channel).Check(HealthCheckRequest(), metadata=probe)
    await service.http.get("/models", headers={"x-request-id": "no-probe"})
    await inference.ServerMetadata(oip.ServerMetadataRequest(), metadata=(("x-request-id", "no-probe"),))
    for process in (service.rest, service.rpc):
        await line_of(process, "no-probe")
        assert [line for line in process.lines if line.get("request_id") == "probe"] == []


async def test_without_an_access_log_requests_are_no_lines() -> None:
    """With --no-access-log requests have no lines."""
    async with (
        fake_worker(Settings()) as worker,
        front_end("rest", worker.address, "", "--no-access-log") as rest,
        httpx2.AsyncClient(base_url=rest.url, timeout=60) as http,
    ):
        assert (await http.post("/classify", content=picture(9))).status_code == 200
        await stopped(rest)
    assert [line["event"] for line in rest.lines] == ["listening"]


LIES = (b"%0d%0a2026 [info] all is well", b"%1b%5b2K", b"%e2%80%ae", b"\x1b[2K", b"%00")
"""Parts of a path; none may begin a line, nor reach a terminal unescaped."""


async def test_callers_cannot_write_console_lines() -> None:
    """Control characters in an id or a path are escaped, in each encoding."""
    async with fake_worker(Settings()) as worker:
        flags = ("--http-port", "0", "--worker-address", worker.address, "--log-format", "console")
        with started("rest", *flags) as process:
            (listening,) = await lines_of(process, lambda line: "listening" in line["event"])
            for lie in LIES:
                await _send(int(listening["event"].rpartition(":")[2].split()[0]), lie)
            process.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.process.wait, 60) == 0
    lines = [line["event"] for line in process.lines]
    assert sum("/classify" in line for line in lines) == len(LIES) - 1  # one is no HTTP
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\x20-\x7e]*", line) for line in lines), lines


async def _send(port: int, lie: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    path = b"/classify" + lie.replace(b" ", b"%20")
    writer.write(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\nx-request-id: a" + lie + b"\r\nconnection: close\r\n\r\n")
    await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    await writer.wait_closed()


async def test_callers_choose_no_unprintable_ids(service: Traced) -> None:
    """An id that is not printable ASCII is replaced by a random one in the log."""
    image = picture(9, width=77)
    await VisionStub(service.channel).Classify(pb.ClassifyRequest(image=image, id="a\r\nb\x1b[2K\u202e"))
    size = pb.ClassifyRequest(image=image, id="a\r\nb\x1b[2K\u202e").ByteSize()
    (line,) = await lines_of(service.rpc, lambda line: line.get("request_bytes") == size)
    assert re.fullmatch(r"[0-9a-f]{32}", line["request_id"])
