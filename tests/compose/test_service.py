"""The stack on the CPU, as its users see it: answers, health, metrics, and what its containers may not do."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import grpc
import httpx2
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from prometheus_client.parser import text_string_to_metric_families

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from model.reference import REFERENCE_PICTURE
from tests.compose.stack import SERVICES, Stack, inspect, run

PICTURE = REFERENCE_PICTURE.read_bytes()
CONFINEMENT = """
import errno, json, os, pathlib
def write(folder):
    try:
        pathlib.Path(folder, "written").write_text("")
    except OSError as error:
        return errno.errorcode[error.errno]
    return "written"
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "CapEff": status["CapEff"], "NoNewPrivs": status["NoNewPrivs"],
    **{folder: write(folder) for folder in ("/", "/usr/local/bin", "/models", "/run/convmlp", "/tmp")},
}))
"""


def url(stack: Stack) -> str:
    return f"http://{stack.address('rest', 8000)}"


@pytest.mark.parametrize(
    ("task", "answers"), [("classify", "labels"), ("detect", "detections"), ("segment", "segments")]
)
def test_photographs_are_answered(stack: Stack, task: str, answers: str) -> None:
    """A photograph that is posted to the published port is answered, by each task's model."""
    reply = httpx2.post(f"{url(stack)}/{task}", content=PICTURE, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.json()["results"][0][answers]


def test_grpc_answers_and_reports_its_health(stack: Stack) -> None:
    """The published gRPC port reports SERVING, and answers as REST does."""
    with grpc.insecure_channel(stack.address("grpc", 8001)) as channel:
        health: Any = HealthStub(channel)
        status = health.Check(HealthCheckRequest(), timeout=30).status
        reply = VisionStub(channel).Classify(pb.ClassifyRequest(image=PICTURE), timeout=60)
    assert status == HealthCheckResponse.SERVING
    rest = httpx2.post(f"{url(stack)}/classify", content=PICTURE, timeout=60).json()
    assert [one.label for one in reply.labels] == [one["label"] for one in rest["results"][0]["labels"]]


def test_the_playground_is_there(stack: Stack) -> None:
    """The front-end's image has the pages for people."""
    assert "<html" in httpx2.get(url(stack), timeout=30).text
    assert httpx2.get(f"{url(stack)}/web/samples/tabby.jpg", timeout=30).status_code == 200


@pytest.mark.usefixtures("stack")
def test_front_ends_start_when_the_worker_is_healthy(as_started: dict[str, dict[str, Any]]) -> None:
    """No front-end ran before the worker's models had proven themselves."""
    proven = next(one["End"] for one in as_started["worker"]["Health"]["Log"] if one["ExitCode"] == 0)
    for service in ("rest", "grpc"):
        assert _time(as_started[service]["StartedAt"]) >= _time(proven), service


def _time(text: str) -> datetime:
    # Nanoseconds are more than Python reads.
    return datetime.fromisoformat(f"{text[:26].rstrip('Z')}+00:00")


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_no_rights(stack: Stack, service: str) -> None:
    """A container runs as an unprivileged user without capabilities, and can write to /tmp, and to the sockets' folder
    if it makes one, but nowhere else."""
    found = json.loads(stack.python(service, CONFINEMENT).out)
    sockets = "written" if service == "worker" else "EROFS"
    assert found == {
        "uid": 10001,
        "gid": 10001,
        "CapEff": f"{0:016x}",
        "NoNewPrivs": "1",
        "/": "EROFS",
        "/usr/local/bin": "EROFS",
        "/models": "EROFS",
        "/run/convmlp": sockets,
        "/tmp": "written",
    }
    limits = stack.container(service)["HostConfig"]
    assert limits["Memory"] > 0
    assert limits["PidsLimit"] > 0


def test_every_container_exposes_its_metrics(stack: Stack) -> None:
    """Each container is reached by its service's name, as Prometheus does it, and exposes its own part's metrics."""
    httpx2.post(f"{url(stack)}/classify", content=PICTURE, timeout=60)
    for address, metric in (
        ("rest:8000", "convmlp_requests"),
        ("grpc:8003", "convmlp_in_flight_requests"),
        ("worker:8002", "convmlp_batch_size"),
    ):
        names = {one.name for one in text_string_to_metric_families(stack.fetch(f"http://{address}/metrics"))}
        assert metric in names, address


def test_the_worker_cannot_be_reached_from_outside(stack: Stack) -> None:
    """The worker publishes no port and is on no network that leads out; its socket is a file."""
    worker = stack.container("worker")
    assert not any(worker["NetworkSettings"]["Ports"].values())
    assert [inspect(name)["Internal"] for name in worker["NetworkSettings"]["Networks"]] == [True]


def test_nothing_is_left_of_health_checks(stack: Stack) -> None:
    """Without an init in the container, a check that is over leaves no process behind: only the part itself runs."""
    for service in SERVICES:
        container = stack.container(service)
        assert container["State"]["Health"]["Log"]
        states = run("docker", "top", container["Id"], "-eo", "pid,stat").out.splitlines()[1:]
        assert not [one for one in states if "Z" in one], service
