"""Tracing in real processes: switched on, misconfigured, with a dead collector, at the end of a process."""

from __future__ import annotations

import asyncio
import base64
import io
import socket
from pathlib import Path

import grpc
import httpx2
import PIL.Image
import PIL.PngImagePlugin
import pytest

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from service.observability.tracing import NO_SPAN, TraceContext, open_tracing
from service.process import EXIT_CONFIG
from service.settings import Settings
from tests.e2e.convmlp_process import started
from tests.fakes import fake_worker
from tests.ports import closed_port
from tests.service.frontend.grpc_server import refusal
from tests.service.frontend.rest_server import picture
from tests.service.observability.collector import SERVER, collecting
from tests.service.observability.span_capture import caller_trace, front_end, stopped, traced_service

NOWHERE = "http://127.0.0.1:9"

WITHOUT_EXTRA = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in ("opentelemetry.sdk", "opentelemetry.exporter", "opentelemetry.proto"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Missing())
"""
"""Hides the extra's packages from a process."""


@pytest.fixture
def without_extra(tmp_path: Path) -> dict[str, str]:
    """The variables for a process in whose installation the extra is missing."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_EXTRA)
    return {"PYTHONPATH": str(tmp_path)}


@pytest.mark.parametrize("part", ["rest", "grpc", "worker"])
async def test_without_opentelemetry_tracing_is_a_misconfiguration(part: str, without_extra: dict[str, str]) -> None:
    """A part that cannot trace as configured exits at once with EXIT_CONFIG and names the extra to install."""
    flags = ("--http-port", "0", "--grpc-port", "0", "--worker-metrics-port", "0")
    address = ("--worker-address", "ipc:///tmp/convmlp-test-nobody-is-here", "--otlp-endpoint", NOWHERE)
    with started(part, *flags, *address, environment=without_extra, fresh=True) as process:
        assert await asyncio.to_thread(process.process.wait, 60) == EXIT_CONFIG
    (error,) = [line["error"] for line in process.lines if line.get("level") == "error"]
    assert "convmlp-serving[tracing]" in error


async def test_without_opentelemetry_all_else_works(without_extra: dict[str, str]) -> None:
    """Without --otlp-endpoint a front-end neither needs nor imports the extra's packages."""
    async with (
        fake_worker(Settings()) as worker,
        front_end("rest", worker.address, "", environment=without_extra, fresh=True) as rest,
        httpx2.AsyncClient(base_url=rest.url, timeout=60) as http,
    ):
        answer = await http.post("/classify", content=picture(9), headers=caller_trace().headers)
        assert answer.status_code == 200


async def test_what_is_not_sent_yet_is_sent_at_the_end() -> None:
    """A process delivers its last spans before it stops, under the names of OpenTelemetry's variables."""
    environment = {
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
        "OTEL_SERVICE_NAME": "pictures",
        "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=seven,deployment.environment=test",
    }
    with collecting() as collector:
        async with (
            fake_worker(Settings()) as worker,
            front_end("rest", worker.address, collector.url, environment=environment) as rest,
            httpx2.AsyncClient(base_url=rest.url, timeout=60) as http,
        ):
            await http.post("/classify", content=picture(9))
            assert collector.spans == []
        resources = [span.resource for span in collector.spans]
        assert sorted(span.name for span in collector.spans) == ["POST /classify", "decode", "post", "predict"]
        for resource in resources:
            assert resource["service.name"] == "pictures"
            assert resource["service.instance.id"] == "seven"
            assert resource["deployment.environment"] == "test"


async def test_a_collector_that_refuses_costs_a_line_in_the_log() -> None:
    """For all refusals together one line reports the loss, and one the recovery."""
    with collecting() as collector:
        collector.refusing = True
        async with (
            fake_worker(Settings()) as worker,
            front_end("rest", worker.address, collector.url) as rest,
            httpx2.AsyncClient(base_url=rest.url, timeout=60) as http,
        ):
            while collector.refused < 4:
                assert (await http.post("/classify", content=picture(9))).status_code == 200
            collector.refusing = False
            await http.post("/classify", content=picture(9))
            await asyncio.to_thread(rest.wait_for, "traces are delivered again")
    (warning,) = [line for line in rest.lines if line["level"] != "info"]
    assert warning["event"] == "traces cannot be delivered and are dropped until the collector answers"
    assert warning["collector"] == collector.url
    assert "400" in warning["reason"]


async def test_a_dead_collector_costs_a_line_in_the_log() -> None:
    """With a dead collector more requests than the span queue holds are answered, and the process exits with 0."""
    environment = {
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
        "OTEL_BSP_MAX_QUEUE_SIZE": "20",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "20",
    }
    with closed_port() as port:
        async with (
            fake_worker(Settings()) as worker,
            front_end("rest", worker.address, f"http://name:secret@127.0.0.1:{port}", environment=environment) as rest,
            httpx2.AsyncClient(base_url=rest.url, timeout=60) as http,
        ):
            await http.post("/classify", content=picture(9))
            await asyncio.to_thread(
                rest.wait_for, "traces cannot be delivered and are dropped until the collector answers"
            )
            for _ in range(60):
                assert (await http.post("/classify", content=picture(9))).status_code == 200
    warning, *more = [line for line in rest.lines if line["level"] != "info"]
    assert warning["collector"] == f"http://127.0.0.1:{port}"
    assert "refused" in warning["reason"]
    assert [line["event"] for line in more] == ["the last traces were not delivered in time and are lost"]
    assert "secret" not in str(rest.lines)


async def test_a_silent_collector_does_not_hold_up_the_end() -> None:
    """A process does not wait at its end for a collector that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        slow = {"OTEL_EXPORTER_OTLP_TIMEOUT": "100000", "OTEL_BSP_SCHEDULE_DELAY": "20"}
        async with (
            fake_worker(Settings()) as worker,
            front_end("rest", worker.address, endpoint, environment=slow) as rest,
        ):
            async with httpx2.AsyncClient(base_url=rest.url, timeout=60) as http:
                assert (await http.post("/classify", content=picture(9))).status_code == 200
            await stopped(rest)  # within a minute; the exporter's own timeout is longer
    assert rest.lines[-1]["event"] == "the last traces were not delivered in time and are lost"


async def test_the_ratio_decides_where_the_caller_does_not() -> None:
    """With a ratio of 0 a request is recorded if its caller records, and only then."""
    with collecting() as collector:
        settings = Settings(otlp_endpoint=collector.url, trace_sample_ratio=0.0)
        caller = caller_trace()
        with open_tracing(settings, "rest") as tracing:
            assert tracing.request("alone", NO_SPAN.context) is NO_SPAN
            span = tracing.request("with its caller", tracing.remote(_context(caller.headers)).context)
            assert span.recording
            span.end()
        (received,) = collector.spans
        assert (received.name, received.trace, received.parent) == ("with its caller", caller.trace, caller.span)


def _context(headers: dict[str, str]) -> TraceContext:
    return TraceContext(headers["traceparent"])


async def test_spans_and_logs_hold_no_secrets(tmp_path: Path) -> None:
    """No picture content, key or query is in a span or, at any level, in a log line."""
    marker = "MaRkEr"
    keys = tmp_path / "keys"
    keys.write_text(f"alice {marker}-key-that-is-long-enough\n")
    flags = ("--log-level", "debug", "--api-keys-file", str(keys))
    headers = {"authorization": f"Bearer {marker}-key-that-is-long-enough"}
    pictures = [_marked(marker), marker.encode() * 9, _marked(marker)[:200], b"\xff\xd8\xff" + marker.encode() * 9]
    async with traced_service(*flags) as service:
        for image in pictures:
            await service.http.post("/classify", content=image, headers=headers)
            body = {"images": [base64.b64encode(image).decode(), marker]}
            await service.http.post("/classify", json=body, headers=headers)
        for query in (f"top_k={marker}", f"{marker}=1", f"model={marker}", f"view={marker}"):
            await service.http.post(f"/classify?{query}", content=picture(9), headers=headers)
        await service.http.post("/classify", content=picture(9), headers={"authorization": f"Bearer {marker}"})
        vision = VisionStub(service.channel)
        metadata = tuple(headers.items())
        await vision.Classify(pb.ClassifyRequest(image=pictures[0]), metadata=metadata)
        await refusal(vision.Classify(pb.ClassifyRequest(image=pictures[1], model=marker), metadata=metadata))
        bad = await refusal(
            vision.Classify(pb.ClassifyRequest(image=pictures[0]), metadata=(("authorization", f"Bearer {marker}"),))
        )
        assert bad.code() is grpc.StatusCode.UNAUTHENTICATED
    requests = [span for span in service.collector.spans if span.kind == SERVER]
    assert len(requests) == 2 * len(pictures) + 4 + 1 + 3
    received = b"".join(service.collector.bodies)
    logged = str([*service.rest.lines, *service.rpc.lines])
    assert "alice" in logged
    for form in (marker, base64.b64encode(marker.encode()).decode().rstrip("="), repr(marker.encode() * 3)):
        assert form.encode() not in received
        assert form not in logged


def _marked(marker: str) -> bytes:
    """A valid picture with the marker in its EXIF data and in its text."""
    exif = PIL.Image.Exif()
    exif[0x010F] = marker
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Comment", marker)
    file = io.BytesIO()
    PIL.Image.new("RGB", (80, 60)).save(file, "PNG", exif=exif, pnginfo=text)
    return file.getvalue()
