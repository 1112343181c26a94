"""`convmlp serve` with API keys and a rate limit, over HTTP and gRPC."""

from __future__ import annotations

from pathlib import Path

import grpc
import httpx2

from convmlp.v1 import vision_pb2, vision_pb2_grpc
from model.reference import REFERENCE_PICTURE
from service.process import EXIT_CONFIG
from tests.e2e.convmlp_process import running_service, started_service

KEY = "0123456789abcdef"
PICTURE = REFERENCE_PICTURE.read_bytes()


def test_keys_and_rate_limits_hold_over_both_transports(tmp_path: Path) -> None:
    """The service becomes ready without a key; callers need one, and each has its own rate limit."""
    path = tmp_path / "keys"
    path.write_text(f"partner {KEY}\n", encoding="ascii")
    flags = ("--models", "convmlp_pets_breed", "--api-keys-file", str(path))
    with running_service(*flags, "--rate-limit-per-s", "0.001", "--rate-limit-burst", "1") as service:
        with httpx2.Client(base_url=service.url, timeout=60) as http:
            assert http.post("/classify", content=PICTURE).status_code == 401
            http.headers["Authorization"] = f"Bearer {KEY}"
            assert [http.post("/classify", content=PICTURE).status_code for _ in range(2)] == [200, 429]
        with grpc.insecure_channel(service.grpc_address) as channel:
            stub = vision_pb2_grpc.VisionStub(channel)
            request = vision_pb2.ClassifyRequest(image=PICTURE)
            codes = []
            for metadata in ((), (("authorization", f"Bearer {KEY}"),), (("authorization", f"Bearer {KEY}"),)):
                try:
                    assert stub.Classify(request, metadata=metadata, timeout=60).labels
                    codes.append(grpc.StatusCode.OK)
                except grpc.RpcError as error:
                    codes.append(error.code())
            assert codes == [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED]
    assert KEY not in str(service.lines)


def test_a_missing_file_of_keys_is_an_error(tmp_path: Path) -> None:
    """A service with a missing file of keys does not start, and its log has the reason."""
    with started_service("--models", "convmlp_pets_breed", "--api-keys-file", str(tmp_path / "none")) as service:
        line = service.wait_for("cannot read the API keys")
        assert "none" in line["error"]
        assert service.process.wait(timeout=60) == EXIT_CONFIG
