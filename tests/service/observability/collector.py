"""An OpenTelemetry collector on a free port: it accepts OTLP over HTTP and keeps each request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.waiting import PATIENCE_S

SERVER = SpanMessage.SPAN_KIND_SERVER
INTERNAL = SpanMessage.SPAN_KIND_INTERNAL


@dataclass(frozen=True)
class ReceivedSpan:
    """One span, its ids in hexadecimal. `parent` is empty in a trace's first span, `error` in a span without one."""

    resource: Mapping[str, Any]
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    state: str
    attributes: Mapping[str, Any]
    links: frozenset[tuple[str, str]]
    error: str
    start_ns: int
    end_ns: int

    @property
    def service(self) -> str:
        name: str = self.resource["service.name"]
        return name


class Collector:
    """The requests received. `bodies` are theirs, undecoded; while `refusing` is set, requests are only counted."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.bodies: list[bytes] = []
        self.refusing = False
        self.refused = 0

    @property
    def spans(self) -> list[ReceivedSpan]:
        return [span for body in tuple(self.bodies) for span in _spans(body)]

    def trace(self, trace: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.trace == trace]

    async def until(self, enough: Callable[[list[ReceivedSpan]], bool]) -> list[ReceivedSpan]:
        """Wait until `enough` of all spans is true, and return them."""
        async with asyncio.timeout(PATIENCE_S):
            while not enough(spans := self.spans):
                await asyncio.sleep(0.02)
        return spans

    async def named(self, trace: str, *names: str) -> Tree:
        """Wait until a trace has exactly the spans of these names, each as often as named, and return it."""
        try:
            await self.until(lambda _: sorted(one.name for one in self.trace(trace)) == sorted(names))
        except TimeoutError:
            raise AssertionError(f"wanted {sorted(names)}, had {sorted(s.name for s in self.trace(trace))}") from None
        return Tree(self.trace(trace), self)


@dataclass(frozen=True)
class Tree:
    """The spans of one trace."""

    spans: list[ReceivedSpan]
    collector: Collector

    def __getitem__(self, name: str) -> ReceivedSpan:
        """The one span of that name."""
        (span,) = self.all(name)
        return span

    def all(self, name: str) -> list[ReceivedSpan]:
        return [span for span in self.spans if span.name == name]

    def children(self, of: ReceivedSpan) -> dict[str, ReceivedSpan]:
        found = [span for span in self.spans if span.parent == of.id]
        by_name = {span.name: span for span in found}
        assert len(by_name) == len(found)
        return by_name

    async def batch_of(self, infer: ReceivedSpan) -> ReceivedSpan:
        """The batch in which an image was on the device; it has a trace of its own."""
        (link,) = infer.links
        spans = await self.collector.until(lambda spans: any((one.trace, one.id) == link for one in spans))
        (batch,) = [one for one in spans if (one.trace, one.id) == link]
        return batch


@contextmanager
def collecting(port: int = 0) -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            taken = self.path == "/v1/traces" and not collector.refusing
            if taken:
                collector.bodies.append(body)
            else:
                collector.refused += 1
            self.send_response(200 if taken else 400)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    collector = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _spans(body: bytes) -> Iterator[ReceivedSpan]:
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _values(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield ReceivedSpan(
                    resource=resource,
                    name=span.name,
                    kind=span.kind,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    state=span.trace_state,
                    attributes=_values(span.attributes),
                    links=frozenset((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    error=span.status.message if span.status.code == Status.STATUS_CODE_ERROR else "",
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                )


def _values(attributes: Any) -> dict[str, Any]:  # noqa: ANN401  (protobuf's repeated field)
    return {one.key: _value(one) for one in attributes}


def _value(one: KeyValue) -> Any:  # noqa: ANN401
    kind = one.value.WhichOneof("value")
    return getattr(one.value, kind) if kind else None
