"""All servers of the comparison: how to start each, send it requests, and parse its answers."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.environments import python_of
from benchmarks.material import MODEL, Material
from benchmarks.network import Kind, precision_of
from benchmarks.peers.classifier import NOOP
from service.cli.load.http import request_bytes
from service.settings import usable_cores

OURS = "convmlp"
LARGE = "large"
REPOSITORY = Path(__file__).parent.parent

Requests = Callable[[str, bytes, str], bytes]
"""Host, encoded picture and path to a whole request."""
Read = Callable[[bytes], int]
"""A body's best class. Raises ValueError, LookupError or msgspec.DecodeError if it has none."""


class Arrangement(StrEnum):
    """How a peer divides the cores, and how it batches. This service chooses both itself."""

    TUNED = "tuned"
    """The best found on few cores: one copy of the network per core, one thread each, batches that fit the caches."""
    AS_ADVISED = "as-advised"
    """As the servers' documentation shows: one copy of the network on all cores, and large batches."""


class Who(NamedTuple):
    """What is measured: `network` is a `Kind`; or, of this service, `noop`, or `large` for the paper's own sizes."""

    server: str
    network: str
    processes: int = 1
    """Front-end processes; only this service's no-op and the bare FastAPI have more than one."""
    arrangement: Arrangement = Arrangement.TUNED

    def __str__(self) -> str:
        more = f" x{self.processes}" if self.processes > 1 else ""
        return f"{self.server}/{self.network}{more}" + f" {self.arrangement}" * (self.arrangement != Arrangement.TUNED)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that can be started, and the form of its requests."""

    who: Who
    path: str
    request: Requests
    read: Read


@dataclass(frozen=True, slots=True)
class Start:
    command: Sequence[str]
    environment: Mapping[str, str]


class _Peers(msgspec.Struct):
    indices: list[int]


class _Label(msgspec.Struct):
    index: int


class _Labels(msgspec.Struct):
    labels: list[_Label]


class _Ours(msgspec.Struct):
    results: list[_Labels]


class _Tensor(msgspec.Struct):
    data: list[int]


class _Inference(msgspec.Struct):
    outputs: list[_Tensor]


def _raw(host: str, picture: bytes, path: str) -> bytes:
    return request_bytes("POST", host, path, {"Content-Type": "image/jpeg"}, picture)


def _in_json(host: str, picture: bytes, path: str) -> bytes:
    """V2 JSON, the picture as base64 (MLServer)."""
    data = [base64.b64encode(picture).decode("ascii")]
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
    body = json.dumps({"inputs": [{**tensor, "data": data}]}).encode("ascii")
    return request_bytes("POST", host, path, {"Content-Type": "application/json"}, body)


def _in_binary(host: str, picture: bytes, path: str) -> bytes:
    """V2 with the binary tensor extension in both directions, but the answer as JSON (Triton)."""
    tensor = {"name": "image", "shape": [1, 1], "datatype": "BYTES"}
    parameters = {"parameters": {"binary_data_size": len(picture) + 4}}
    head = json.dumps({"inputs": [{**tensor, **parameters}]}).encode("ascii")
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return request_bytes("POST", host, path, headers, head + len(picture).to_bytes(4, "little") + picture)


def _read_ours(body: bytes) -> int:
    return msgspec.json.decode(body, type=_Ours).results[0].labels[0].index


def _read_peer(body: bytes) -> int:
    return msgspec.json.decode(body, type=_Peers).indices[0]


def _read_tensor(body: bytes) -> int:
    return msgspec.json.decode(body, type=_Inference).outputs[0].data[0]


V2 = "/v2/models/convmlp/infer"
PEERS: Mapping[str, tuple[str, str, Requests, Read]] = {
    "fastapi": ("fastapi_pool", "/predict", _raw, _read_peer),
    "litserve": ("litserve_api", "/predict", _raw, _read_peer),
    "mosec": ("mosec_worker", "/inference", _raw, _read_peer),
    "bentoml": ("bento_service", "/predict", _raw, _read_peer),
    "rayserve": ("ray_deployment", "/predict", _raw, _read_peer),
    "mlserver": ("mlserver_runtime", V2, _in_json, _read_tensor),
    "triton": ("triton_callable", V2, _in_binary, _read_tensor),
    "torchserve": ("torchserve_handler", "/predictions/convmlp", _raw, _read_peer),
}
"""By name: the module, the path, and the forms of request and answer."""


def peer(who: Who) -> Server:
    _, path, request, read = PEERS[who.server]
    return Server(who, path, request, read)


def ours(network: str, processes: int = 1) -> Server:
    return Server(Who(OURS, network, processes), "/classify", _raw, _read_ours)


def start_of(server: Server, port: int, material: Material, folder: Path) -> Start:
    """How to start it at `port`; peers may use the two ports behind it as well.

    Raises:
        CannotInstall: the peer is not available here.
    """
    who = server.who
    if who.server == OURS:
        return _start_ours(who, port, material)
    module = PEERS[who.server][0]
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "BENCH_PORT": str(port),
        "BENCH_NETWORK": who.network,
        "BENCH_MATERIAL": str(material.folder.resolve()),
        **_arranged(who.arrangement, usable_cores()),
    }
    python = str(python_of(who.server, folder))
    command = [python, "-m", f"benchmarks.peers.{module}"]
    if who.processes > 1:
        command = [python, "-m", "uvicorn", f"benchmarks.peers.{module}:app", "--port", str(port), "--no-access-log"]
        command += ["--workers", str(who.processes), "--log-level", "warning"]
    return Start(command, environment)


def _arranged(arrangement: Arrangement, cores: int) -> Mapping[str, str]:
    workers, threads, batch, wait_ms = (cores, 1, 4, 2) if arrangement is Arrangement.TUNED else (1, cores, 32, 5)
    return {
        "BENCH_WORKERS": str(workers),
        "BENCH_THREADS": str(threads),
        "BENCH_BATCH": str(batch),
        "BENCH_WAIT_MS": str(wait_ms),
        "OMP_NUM_THREADS": str(threads),
    }


def _start_ours(who: Who, port: int, material: Material) -> Start:
    flags = ["--http-port", str(port), "--grpc-port", "0", "--worker-metrics-port", "0", "--no-access-log"]
    if who.network == NOOP:
        command = [sys.executable, "-m", "benchmarks.noop", "--http-port", str(port)]
        return Start([*command, "--rest-processes", str(who.processes)], {})
    names = ",".join(models_of(who).values())
    precision = precision_of(Kind.FASTEST if who.network == LARGE else Kind(who.network), material.fastest_precision())
    flags += ["--models-dir", str(material.models_dir.resolve()), "--models", names]
    # Other services on this machine may have measured their batches while it was busy.
    flags += ["--precision", precision, "--device", "cpu", "--state-dir", str(material.folder.resolve() / "state")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVMLP_")}
    return Start([sys.executable, "-m", "service.cli", "serve", *flags], environment)


EMBEDDED_MODELS = {"detect": "convmlp_pets_heads", "segment": "convmlp_pets_outline"}
LARGE_MODELS = {"detect": "retinanet_bench_s", "segment": "sem_fpn_bench_s"}


def models_of(who: Who) -> Mapping[str, str]:
    """The models that are served, by task."""
    return LARGE_MODELS if who.network == LARGE else {"classify": MODEL, **EMBEDDED_MODELS}
