"""The whole service with its default settings, over real sockets."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import httpx2
import numpy as np
import PIL.Image
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from safetensors.numpy import load_file

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from model.bundle import EMBEDDED_DIR, WEIGHTS_FILE
from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import RunningService, started
from tests.service.frontend.grpc_server import health_of
from tests.waiting import eventually

if TYPE_CHECKING:
    from convmlp.v1.vision_pb2_grpc import VisionAsyncStub

PICTURE = REFERENCE_PICTURE.read_bytes()


def test_the_three_tasks_answer_a_photograph(service: RunningService) -> None:
    """A photograph of a cat has labels, a cat's head and a cat's outline, in its own pixels."""
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        labels = client.post("/classify", content=PICTURE).json()["results"][0]
        heads = client.post("/detect", content=PICTURE).json()["results"][0]
        outline = client.post("/segment", content=PICTURE).json()["results"][0]
    assert labels["image"] == {"width": 451, "height": 300}
    assert len(labels["labels"]) == 5
    assert sum(one["score"] for one in labels["labels"]) <= 1.0
    best = heads["detections"][0]
    assert best["label"] == "cat"
    assert 0 <= best["box"]["xmin"] < best["box"]["xmax"] <= 451
    assert 0 <= best["box"]["ymin"] < best["box"]["ymax"] <= 300
    areas = {one["label"]: one["area"] for one in outline["segments"]}
    assert sum(areas.values()) == 451 * 300
    assert areas["cat"] > areas.get("dog", 0)


def test_an_analysis_has_the_answers_of_the_endpoints(service: RunningService) -> None:
    """To the bit, with masks, over REST and gRPC."""
    tasks = ("classify", "detect", "segment")
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        together = client.post("/analyze", content=PICTURE).json()
        alone = [client.post(f"/{task}", content=PICTURE).json() for task in tasks]
    assert together["results"][0]["answers"] == {one["task"]: one["results"][0] for one in alone}
    assert together["models"] == {one["task"]: one["model"] for one in alone}
    with grpc.insecure_channel(service.grpc_address) as channel:
        stub = VisionStub(channel)
        analysis = stub.Analyze(pb.AnalyzeRequest(image=PICTURE))
        messages = [
            stub.Classify(pb.ClassifyRequest(image=PICTURE)),
            stub.Detect(pb.DetectRequest(image=PICTURE)),
            stub.Segment(pb.SegmentRequest(image=PICTURE)),
        ]
    for answer, message in zip(analysis.answers, messages, strict=True):
        found = getattr(answer, answer.WhichOneof("result") or "")
        for one in (found, message):
            one.ClearField("id")
            one.ClearField("timings")
        assert found == message


def test_labels_are_those_of_the_embedding(service: RunningService) -> None:
    """The classifier's last layer, computed here on the vector of /embed, gives the scores of /classify."""
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        embedded = client.post("/embed", content=PICTURE).json()
        labels = client.post("/classify?top_k=37", content=PICTURE).json()["results"][0]["labels"]
    weights = load_file(EMBEDDED_DIR / embedded["model"] / WEIGHTS_FILE)
    vector = np.array(embedded["results"][0]["embedding"])
    logits = weights["head.weight"].astype(np.float64) @ vector + weights["head.bias"]
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    assert max(abs(label["score"] - scores[label["index"]]) for label in labels) < 0.01


@pytest.mark.parametrize("path", ["/classify", "/detect", "/segment"])
def test_every_orientation_gives_the_same_answer(service: RunningService, path: str) -> None:
    """A photograph in any of EXIF's eight orientations has the answer of the upright one, in upright pixels."""
    upright = PIL.Image.open(REFERENCE_PICTURE)
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        bodies = [oriented(upright, tag) for tag in range(1, 9)]
        answers = [client.post(path, content=body).json()["results"] for body in bodies]
    assert answers[0][0]["image"] == {"width": 451, "height": 300}
    assert all(answer == answers[0] for answer in answers)


def oriented(upright: PIL.Image.Image, tag: int) -> bytes:
    """A PNG of the image, stored so that the orientation `tag` turns it upright."""
    turn = PIL.Image.Transpose
    stored_by = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = upright.transpose(stored_by[tag]) if tag in stored_by else upright
    exif = PIL.Image.Exif()
    exif[0x0112] = tag
    buffer = io.BytesIO()
    stored.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


async def test_front_ends_never_load_torch(service: RunningService) -> None:
    """Front-ends that have answered each task have no torch library mapped, and importing all of one loads no torch."""
    (address,) = [line["address"] for line in service.lines if line["event"] == "loading"]
    ports = ("--http-port", "0", "--grpc-port", "0", "--grpc-metrics-port", "0")
    with (
        started("rest", "--worker-address", address, *ports, fresh=True) as rest,
        started("grpc", "--worker-address", address, *ports, fresh=True) as rpc,
    ):
        url, target = rest.wait_for("listening")["url"], rpc.wait_for("listening")["address"]
        async with httpx2.AsyncClient(base_url=url, timeout=60) as http, grpc.aio.insecure_channel(target) as channel:

            async def is_ready() -> bool:
                watch = health_of(channel).Watch(HealthCheckRequest(), wait_for_ready=True)
                serves = (await watch.read()).status == HealthCheckResponse.SERVING
                watch.cancel()
                return serves and (await http.get("/readyz")).is_success

            await eventually(is_ready)
            for task in ("classify", "detect", "segment"):
                assert (await http.post(f"/{task}", content=PICTURE)).status_code == 200
            stub: VisionAsyncStub = VisionStub(channel)
            await stub.Classify(pb.ClassifyRequest(image=PICTURE))
            await stub.Detect(pb.DetectRequest(image=PICTURE))
            await stub.Segment(pb.SegmentRequest(image=PICTURE))
        for front_end in (rest, rpc):
            maps = await asyncio.to_thread(Path(f"/proc/{front_end.process.pid}/maps").read_text)
            assert "numpy" in maps
            assert "torch" not in maps
            assert "cv2" not in maps
    for module in ("http_main", "grpc_main"):
        code = f"import sys, service.frontend.{module}; sys.exit(bool({{'torch', 'cv2'}} & set(sys.modules)))"
        ran = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)
        assert ran.returncode == 0


def test_bad_input_affects_no_other_request(service: RunningService) -> None:
    """Good requests between bad ones are answered, and no process restarts."""
    pids = [service.pid_of(part) for part in ("worker-0", "rest-0")]
    with httpx2.Client(base_url=service.url, timeout=60) as client:
        for body, status in ((b"", 400), (PICTURE[:5000], 400), (b"not an image", 415), (b"\xff\xd8\xff" * 99, 400)):
            refused = client.post("/classify", content=body)
            assert refused.status_code == status
            assert refused.headers["content-type"] == "application/problem+json"
            assert client.post("/classify", content=PICTURE).status_code == 200
    assert [service.pid_of(part) for part in ("worker-0", "rest-0")] == pids
