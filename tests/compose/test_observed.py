"""The stack with its own Prometheus, and with a collector of traces: what operators see of it."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator

import grpc
import httpx2
import pytest

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from model.reference import REFERENCE_PICTURE
from service.observability.gpu import HELP
from service.observability.metrics import GPU_INFO
from tests.compose.stack import ON_CPU, SERVICES, Stack, build, eventually, run, running
from tests.deploy.dashboard import TASKS, answers, numbers, panels
from tests.deploy.scraping import Prometheus

PICTURE = REFERENCE_PICTURE.read_bytes()
VERSION = "convmlp-test"
OF_A_SUPERVISOR = frozenset({"convmlp_process_restarts_total", "convmlp_metrics_snapshots_dropped_total"})
"""Metrics that `convmlp serve` adds. Here Docker restarts the processes, and each has metrics of its own."""
# The image that users take comes from a registry; Debian has the same program.
DOCKERFILE = """
FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus wget && rm -rf /var/lib/apt/lists/*
RUN mkdir /prometheus && chown 65534:65534 /prometheus
USER 65534:65534
ENTRYPOINT ["prometheus"]
"""


@pytest.fixture(scope="module")
def observed(images: None) -> Iterator[Stack]:  # noqa: ARG001
    build(f"prom/prometheus:{VERSION}", DOCKERFILE)
    settings = {
        "CONVMLP_OTLP_ENDPOINT": "http://collector:4318",
        "CONVMLP_PUBLISH_PROMETHEUS": "127.0.0.1:",
        "PROMETHEUS_VERSION": VERSION,
    }
    stack = Stack("convmlp-test-observed", (*ON_CPU, "tests/compose/observed.yml"), settings)
    with running(stack, *SERVICES, "collector", "prometheus") as up:
        yield up


@pytest.fixture(scope="module")
def prometheus(observed: Stack) -> Iterator[Prometheus]:
    """The stack's, after it saw requests for each task, good ones and bad ones."""
    with (
        httpx2.Client(base_url=f"http://{observed.address('prometheus', 9090)}", timeout=30) as http,
        httpx2.Client(base_url=f"http://{observed.address('rest', 8000)}", timeout=60) as rest,
    ):
        seen = Prometheus(http)
        seen.until('count(up{job=~"rest|grpc|worker"} == 1) == 3')
        # A rate needs the figures before and after.
        for count in (4, 8):
            for task in TASKS:
                assert rest.post(f"/{task}", content=PICTURE).status_code == 200
            assert rest.post("/classify", content=b"%PDF").status_code == 415
            seen.until(f"sum(convmlp_requests_total) == {count}")
        seen.until("count(convmlp:request_duration_seconds:p99_5m > 0) == 3")
        # Two objectives, seven windows; their groups of rules are evaluated at different times.
        seen.until('count(count by (__name__) ({__name__=~"convmlp:slo_.+:burn_rate.+"})) == 14')
        yield seen


def test_every_part_is_scraped(prometheus: Prometheus) -> None:
    """Prometheus finds the containers by their services' names, each once, and reaches all of them."""
    targets = prometheus.http.get("/api/v1/targets").json()["data"]["activeTargets"]
    assert sorted((one["labels"]["job"], one["health"]) for one in targets) == [
        (job, "up") for job in ("grpc", "prometheus", "rest", "worker")
    ]


def test_rules_are_evaluated_and_none_alarms(prometheus: Prometheus) -> None:
    """All rule files are read, each rule works, and a stack in good health fires no critical alert."""
    groups = prometheus.http.get("/api/v1/rules").json()["data"]["groups"]
    assert {group["name"] for group in groups} == {
        *("convmlp-figures", "convmlp-alerts", "convmlp-parts"),
        *("convmlp-slo", "convmlp-slo-days", "convmlp-slo-alerts"),
    }
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    assert prometheus.instant('ALERTS{alertstate="firing", severity="critical"}') == []


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: str(panel["title"]))
def test_every_query_of_the_dashboard_is_answered(prometheus: Prometheus, panel: dict[str, object]) -> None:
    """Each query finds figures, but those about a GPU or a supervisor, of which there is none."""
    for query, found in answers(prometheus, panel).items():
        names = set(re.findall(r"convmlp_\w+", query))
        about_others = bool(names) and (names <= {*HELP, GPU_INFO} or names <= OF_A_SUPERVISOR)
        assert bool(found) != about_others, query
        assert all(numbers(series) for series in found), f"no number: {query}"


def test_traces_reach_a_collector(observed: Stack, prometheus: Prometheus) -> None:
    """With `CONVMLP_OTLP_ENDPOINT` alone, both front-ends and the worker, whose network is internal, send a request's
    spans under its caller's trace. Prometheus keeps the trace's id beside the request's duration."""
    rest, rpc = secrets.token_hex(16), secrets.token_hex(16)
    header = {trace: f"00-{trace}-{secrets.token_hex(8)}-01" for trace in (rest, rpc)}
    url = f"http://{observed.address('rest', 8000)}/classify"
    assert httpx2.post(url, content=PICTURE, headers={"traceparent": header[rest]}, timeout=60).status_code == 200
    with grpc.insecure_channel(observed.address("grpc", 8001)) as channel:
        metadata = (("traceparent", header[rpc]),)
        assert VisionStub(channel).Classify(pb.ClassifyRequest(image=PICTURE), timeout=60, metadata=metadata).labels

    def arrived() -> bool:
        lines = run("docker", "logs", observed.container("collector")["Id"]).out.splitlines()
        services = {tuple(line.split()[:2]) for line in lines}
        wanted = {(rest, "convmlp-rest"), (rest, "convmlp-worker"), (rpc, "convmlp-grpc"), (rpc, "convmlp-worker")}
        return wanted <= services

    eventually(arrived, 60)

    def kept() -> set[str]:
        duration = "convmlp_model_request_duration_seconds_bucket"
        found = prometheus.ask("query_exemplars", query=duration, start=time.time() - 3600, end=time.time())
        return {one["labels"]["trace_id"] for series in found for one in series["exemplars"]}

    eventually(lambda: {rest, rpc} <= kept(), 60)
