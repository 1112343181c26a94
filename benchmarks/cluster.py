"""CPU time of an answer on a Ray cluster of two nodes beside `convmlp serve`, on this machine and in the same run.

    .cluster/venv/bin/python -m benchmarks.cluster --rounds 3

Both run all the time, with two workers each and the same model, and get callers in alternation. The callers' own CPU is
not counted. What Ray's other processes use is stated as cores: they use it whether there are requests or not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import yaml

from tests.cluster.local_cluster import LocalCluster, environment, free_port, load, local_cluster
from tests.service.frontend.rest_server import picture

MODEL = "convmlp_pets_breed"
START_S = 300.0
KINDS = ("front-ends", "workers", "HAProxy", "HAProxy's manager", "rest")
"""Of processes."""


def kind_of(command: str) -> str:
    """The kind of a process, by its command line."""
    if command.startswith("ray::ServeReplica") and ":worker-" in command:
        return "workers"
    if command.startswith("ray::ServeReplica") or " rest" in command or " grpc" in command:
        return "front-ends"
    if "service.cli worker" in command:
        return "workers"
    if "bin/haproxy" in command:
        return "HAProxy"
    return "HAProxy's manager" if "HAProxyManager" in command else "rest"


def cpu_s(processes: list[psutil.Process]) -> dict[str, float]:
    """CPU seconds since the start of the processes, by kind."""
    seconds = dict.fromkeys(KINDS, 0.0)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[kind_of(" ".join(process.cmdline()))] += times.user + times.system
    return seconds


@contextmanager
def serve(folder: Path) -> Iterator[tuple[int, Callable[[], list[psutil.Process]]]]:
    """`convmlp serve` with two workers: its port, and its processes."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--workers", "2", "--models", MODEL, "--no-access-log"]
    command += ["--http-port", str(port), "--grpc-port", "0", "--worker-metrics-port", "0", "--prepare-threads", "1"]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment()}, stdout=log, stderr=log)
    try:
        end_s = time.monotonic() + START_S
        while not _is_ready(port):
            assert process.poll() is None, (folder / "serve.log").read_text()
            assert time.monotonic() < end_s, (folder / "serve.log").read_text()
            time.sleep(0.5)
        yield port, lambda: psutil.Process(process.pid).children(recursive=True)
    finally:
        process.terminate()
        process.wait(60)


def deploy(cluster: LocalCluster) -> None:
    """Two workers and two front-ends, as `serve` has two and one."""
    group = {"name": "a", "models": [MODEL], "min_workers": 2, "cpus": 1}
    application = {
        **{"name": "convmlp", "import_path": "service.cluster.app:build", "route_prefix": "/"},
        "args": {"groups": [group], "front_ends": 2},
    }
    file = cluster.folder / "serve.yaml"
    file.write_text(yaml.safe_dump({"http_options": {"port": cluster.http_port}, "applications": [application]}))
    cluster.run("service.cli", "cluster", "deploy", str(file), "--address", cluster.head)


async def measure(port: int, processes: list[psutil.Process], callers: int, seconds: float) -> dict[str, float]:
    """CPU ms of an answer by kind; `rest` as cores; and the answers."""
    image = picture(100, 500, 375, "JPEG")
    async with load(port, callers, image=image):
        await asyncio.sleep(2)
    before, started_s = cpu_s(processes), time.monotonic()
    async with load(port, callers, image=image) as result:
        await asyncio.sleep(seconds)
    after, lasted_s = cpu_s(processes), time.monotonic() - started_s
    used = {kind: after[kind] - before[kind] for kind in KINDS}
    assert set(result.statuses) == {"200"}, result.failures[:3]
    figures = {kind: 1000 * used[kind] / result.answered for kind in KINDS if kind != "rest"}
    return {
        **figures,
        "answer": sum(figures.values()),
        "rest, cores": used["rest"] / lasted_s,
        "answers": result.answered,
    }


def _is_ready(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=5).is_success
    except httpx2.HTTPError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a measurement")
    parser.add_argument("--callers", type=int, default=8)
    arguments = parser.parse_args()
    rounds: dict[str, list[dict[str, float]]] = {"serve": [], "cluster": []}
    with tempfile.TemporaryDirectory() as name, local_cluster(2) as cluster, serve(Path(name)) as (port, own):
        deploy(cluster)
        for _ in range(arguments.rounds):
            for which, at, processes in (
                ("serve", port, own()),
                ("cluster", cluster.http_port, [one for node in cluster.nodes for one in node.processes()]),
            ):
                figures = asyncio.run(measure(at, processes, arguments.callers, arguments.seconds))
                rounds[which].append(figures)
                print(which, json.dumps({kind: round(value, 2) for kind, value in figures.items()}), flush=True)
    ratio = statistics.median(
        cluster["answer"] / serve["answer"] for serve, cluster in zip(rounds["serve"], rounds["cluster"], strict=True)
    )
    print(f"CPU of an answer, cluster / serve, median of {arguments.rounds} rounds: {ratio:.2f}")


if __name__ == "__main__":
    main()
