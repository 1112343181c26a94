"""`convmlp grpc` as a process of its own, as in a container, with a worker elsewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx2
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from convmlp.v1 import vision_pb2 as pb
from service.process import EXIT_CONFIG
from service.settings import Settings
from tests.e2e.convmlp_process import RunningService, started
from tests.fakes import FakeWorker, fake_worker
from tests.service.frontend.grpc_server import health_of, refusal, stub_of
from tests.service.frontend.rest_server import picture

MIB = 2**20
FREE_PORTS = ("--grpc-port", "0", "--grpc-metrics-port", "0", "--heartbeat-interval-ms", "50")


@asynccontextmanager
async def started_grpc(*flags: str) -> AsyncIterator[tuple[RunningService, FakeWorker]]:
    """The process, with its `grpc_address` and the `url` of its metrics, and its worker."""
    async with fake_worker(Settings()) as worker:
        with started("grpc", "--worker-address", worker.address, *FREE_PORTS, *flags) as process:
            process.url = (await asyncio.to_thread(process.wait_for, "serving metrics"))["url"]
            process.grpc_address = (await asyncio.to_thread(process.wait_for, "listening"))["address"]
            try:
                yield process, worker
            finally:
                # Here and not by `started`, for the worker lives in this event loop.
                process.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.process.wait, 60) == 0


async def serving(channel: grpc.aio.Channel) -> None:
    """Wait until its health is SERVING."""
    async for response in health_of(channel).Watch(HealthCheckRequest(), timeout=60):
        if response.status == HealthCheckResponse.SERVING:
            return


async def test_it_answers_and_serves_its_own_metrics() -> None:
    """The process answers calls, and its own /metrics counts them."""
    async with started_grpc() as (process, _), grpc.aio.insecure_channel(process.grpc_address) as channel:
        await serving(channel)
        answer = await stub_of(channel).Classify(pb.ClassifyRequest(image=picture(9)))
        assert answer.labels[0].index == 9
        async with httpx2.AsyncClient(timeout=60) as http:
            text = (await http.get(process.url)).text
        wanted = 'convmlp_requests_total{model="fake_classify",outcome="ok",task="classify",transport="grpc"} 1.0'
        assert wanted in text.splitlines()


async def test_a_decompression_bomb_is_refused_early() -> None:
    """A message that would decompress to 128 MiB is refused before the process has allocated that much."""
    bomb = pb.ClassifyRequest(image=bytes(128 * MIB))
    async with started_grpc("--max-request-bytes", f"{MIB}", "--max-image-bytes", f"{MIB}") as (process, _):
        async with grpc.aio.insecure_channel(process.grpc_address) as channel:
            await serving(channel)
            before = process.peak_bytes
            for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
                error = await refusal(stub_of(channel).Classify(bomb, compression=compression))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "larger than max" in (error.details() or "")
            assert (await stub_of(channel).Classify(pb.ClassifyRequest(image=picture(9)))).labels[0].index == 9
        assert process.peak_bytes - before < 100 * MIB


async def test_its_port_is_its_own() -> None:
    """A second front-end on the port exits with an error, although gRPC would share the port."""
    async with started_grpc() as (process, worker):
        port = process.grpc_address.rpartition(":")[2]
        flags = ("--worker-address", worker.address, *FREE_PORTS, "--grpc-port", port)
        with started("grpc", *flags) as second:
            assert await asyncio.to_thread(second.process.wait, 60) == EXIT_CONFIG
            (line,) = [line for line in second.lines if line["event"] == "cannot listen"]
            assert (str(line["port"]), line["error"]) == (port, os.strerror(98))


@pytest.mark.parametrize("setting", ["--grpc-port", "--grpc-metrics-port"])
def test_a_port_in_use_is_a_clear_error(setting: str) -> None:
    """The error names port and flag, and the exit status means a wrong configuration."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started("grpc", "--worker-address", "ipc:///nobody", *FREE_PORTS, setting, str(port)) as process:
            line = process.wait_for("cannot listen")
            assert (line["port"], f"another {setting} " in str(line["remedy"])) == (port, True)
            assert process.process.wait(60) == EXIT_CONFIG


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--grpc-tls-certificate", "{folder}/none.pem", "--grpc-tls-key", "{folder}/none.key"), "No such file"),
        (("--grpc-tls-certificate", "{folder}/none.pem"), "grpc_tls_key"),
        (("--api-keys-file", "{folder}/none"), "No such file"),
    ],
)
def test_invalid_files_end_it(tmp_path: Path, flags: tuple[str, ...], words: str) -> None:
    """Invalid certificates and key files end the process before it serves, with an error that names them."""
    given = [flag.format(folder=tmp_path) for flag in flags]
    with started("grpc", "--worker-address", "ipc:///nobody", *FREE_PORTS, *given) as process:
        assert process.process.wait(60) == EXIT_CONFIG
        errors = [line for line in process.lines if line.get("level") == "error"]
    assert [words in line["error"] for line in errors] == [True]
