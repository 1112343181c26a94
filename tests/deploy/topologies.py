"""The real service as it is deployed: in one (`convmlp serve`), or each part a process of its own, as in containers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx2
import pytest

from convmlp.v1 import vision_pb2 as pb
from convmlp.v1.vision_pb2_grpc import VisionStub
from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import running_service, started

KEY = "0123456789abcdef"
PICTURE = REFERENCE_PICTURE.read_bytes()


@dataclass(frozen=True)
class Deployed:
    """Where a running service is reached, and what of it is to be scraped: HOST:PORT by job."""

    url: str
    grpc_address: str
    targets: dict[str, list[str]]


@contextmanager
def in_one(keys: Path) -> Iterator[Deployed]:
    """`convmlp serve`, scraped at REST's port alone."""
    with running_service("--api-keys-file", str(keys), "--rest-processes", "2") as service:
        yield Deployed(service.url, service.grpc_address, {"rest": [urlsplit(service.url).netloc]})


@contextmanager
def in_parts(keys: Path) -> Iterator[Deployed]:
    """A worker, two REST front-ends and a gRPC front-end, each scraped."""
    address = ("--worker-address", f"ipc://{keys.parent}/worker")
    flags = (*address, "--api-keys-file", str(keys))
    with ExitStack() as parts:
        worker = parts.enter_context(started("worker", *address, "--worker-metrics-port", "0"))
        worker_port = worker.wait_for("loading")["metrics_port"]
        worker.wait_for("ready")
        rest = [parts.enter_context(started("rest", *flags, "--http-port", "0")) for _ in range(2)]
        urls = [one.wait_for("listening")["url"] for one in rest]
        rpc = parts.enter_context(started("grpc", *flags, "--grpc-port", "0", "--grpc-metrics-port", "0"))
        metrics = rpc.wait_for("serving metrics")["url"]
        targets = {
            "rest": [urlsplit(url).netloc for url in urls],
            "grpc": [urlsplit(metrics).netloc],
            "worker": [f"127.0.0.1:{worker_port}"],
        }
        yield Deployed(urls[0], rpc.wait_for("listening")["address"], targets)


def ask(deployed: Deployed) -> dict[str, int]:
    """Good requests, bad ones and refused ones, over both transports; how many of each outcome there should be."""
    with httpx2.Client(base_url=deployed.url, timeout=60) as http:
        assert http.post("/classify", content=PICTURE).status_code == 401
        http.headers["Authorization"] = f"Bearer {KEY}"
        for task in ("classify", "detect", "segment"):
            assert http.post(f"/{task}", content=PICTURE).status_code == 200
        assert http.post("/detect", content=b"%PDF").status_code == 415
        assert http.post("/segment?model=none", content=PICTURE).status_code == 404
        assert http.post("/segment", content=PICTURE, headers={"X-Request-Timeout-Ms": "1"}).status_code in (503, 504)
    credentials = (("authorization", f"Bearer {KEY}"),)
    with grpc.insecure_channel(deployed.grpc_address) as channel:
        stub = VisionStub(channel)
        stub.Classify(pb.ClassifyRequest(image=PICTURE), metadata=credentials, timeout=60)
        stub.Detect(pb.DetectRequest(image=PICTURE), metadata=credentials, timeout=60)
        stub.Segment(pb.SegmentRequest(image=PICTURE), metadata=credentials, timeout=60)
        for metadata, code in (((), "UNAUTHENTICATED"), (credentials, "INVALID_ARGUMENT")):
            with pytest.raises(grpc.RpcError) as refused:
                stub.Detect(pb.DetectRequest(image=b"%PDF"), metadata=metadata, timeout=60)
            assert refused.value.code() is grpc.StatusCode[code]
    return {"ok": 6, "unauthenticated": 2, "unsupported-format": 2, "model-not-found": 1, "late": 1}
