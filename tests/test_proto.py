"""The gRPC contract as a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).parents[1] / "proto"


def test_the_grpc_contract_compiles(tmp_path: Path) -> None:
    """protoc takes every file under proto/ and makes messages and services of it."""
    files = [str(path) for path in PROTO.rglob("*.proto")]
    assert files
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTO)]
    outputs = [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    done = subprocess.run([*command, *outputs, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    service = (tmp_path / "convmlp/v1/vision_pb2_grpc.py").read_text()
    assert "convmlp.v1.Vision" in service
