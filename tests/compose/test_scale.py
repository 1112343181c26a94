"""Several front-ends behind one address: docker-compose.scale.yml, with a balancer of the test's own making."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import grpc
import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from model.reference import REFERENCE_PICTURE
from tests.compose.stack import ON_CPU, SERVICES, Stack, build, run, running

PICTURE = REFERENCE_PICTURE.read_bytes()
REQUESTS = 9
BALANCER = "convmlp-serving/balancer:compose-test"
# The image that users take comes from a registry; Debian has the same program.
DOCKERFILE = """
FROM debian:bookworm-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy && rm -rf /var/lib/apt/lists/*
"""


@pytest.fixture(scope="module")
def scaled(images: None) -> Iterator[Stack]:  # noqa: ARG001
    """Three and two front-ends behind the balancer."""
    build(BALANCER, DOCKERFILE)
    stack = Stack(
        "convmlp-test-scale",
        (*ON_CPU, "docker-compose.scale.yml"),
        {"CONVMLP_BALANCER_IMAGE": BALANCER, "CONVMLP_MODELS": "convmlp_pets_breed"},
    )
    with running(stack, "--scale", "rest=3", "--scale", "grpc=2", *SERVICES, "balancer") as up:
        yield up


def requests_of(container: str, port: int) -> float:
    """Requests that one replica answered, by its own metrics."""
    code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
    text = run("docker", "exec", container, "python", "-c", code).out
    families = [one for one in text_string_to_metric_families(text) if one.name == "convmlp_requests"]
    return sum(sample.value for one in families for sample in one.samples if sample.name.endswith("_total"))


def test_all_replicas_answer_behind_one_port(scaled: Stack) -> None:
    """REST requests and gRPC calls, also on one connection, are shared by all replicas; each counts its own."""
    with httpx2.Client(base_url=f"http://{scaled.address('balancer', 8000)}", timeout=60) as client:
        for _ in range(REQUESTS):
            assert client.post("/classify", content=PICTURE).status_code == 200
    with grpc.insecure_channel(scaled.address("balancer", 8001)) as channel:
        for _ in range(REQUESTS):
            assert VisionStub(channel).Classify(pb.ClassifyRequest(image=PICTURE), timeout=60).labels
    for service, port, replicas in (("rest", 8000, 3), ("grpc", 8003, 2)):
        counts = [requests_of(one, port) for one in scaled.containers(service)]
        assert len(counts) == replicas
        assert sum(counts) == REQUESTS
        assert min(counts) >= 1


def test_a_replica_that_stops_costs_nobody_his_answer(scaled: Stack) -> None:
    """While one of the front-ends is stopped, every request is answered."""
    first, *_ = scaled.containers("rest")
    with httpx2.Client(base_url=f"http://{scaled.address('balancer', 8000)}", timeout=60) as client:
        stopping = subprocess.Popen(["docker", "stop", first], stdout=subprocess.DEVNULL)
        statuses = list[int]()
        while stopping.poll() is None or len(statuses) < 20:
            statuses.append(client.post("/classify", content=PICTURE).status_code)
        assert stopping.returncode == 0
    assert set(statuses) == {200}
