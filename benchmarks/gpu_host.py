"""The CPU side of a host with a fast GPU: real pictures, decoded for real, and a device that takes 0.1 ms an image.

On such a host the CPU is what limits the images/s. Measured are images/s, and CPU time an image by process and thread:
of this working tree, of a revision of it, and of peers with the same decoder. The device is a sleep. All servers run
side by side and are loaded by turns, so that what else the machine does meets all alike.

*Outside decoding* is a server's CPU time an image without that of the decoder alone, which runs by turns with them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop

from benchmarks.environments import CannotInstall, python_of
from benchmarks.figures import Spread
from benchmarks.material import PREPROCESSING, network_input, pictures
from benchmarks.overhead import AGAINST, ANSWER_S, HOST, MAX_ROUNDS, MAX_SECONDS, START_S, Refused, check_out
from benchmarks.peers.classifier import IMAGE_MS, TIMED
from benchmarks.processes import ServerProcess, adopt_orphans, free_ports
from benchmarks.run import within
from benchmarks.servers import REPOSITORY
from service.cli.load.http import ConnectionBroken, Connections, request_bytes
from service.settings import usable_cores

OURS, MOSEC = "this tree", "mosec"
PEERS: Mapping[str, str] = {MOSEC: "/inference"}
CLIENTS = 32
TURN_S = 1.0
WARM_UP_S = 1.0
PEER_BATCH, PEER_WAIT_MS = 32, 1
PARTS = ("front-end loop", "front-end threads", "worker loop", "worker threads")
"""Of this project. The threads of a front-end decode, that of a worker waits for the device."""
ZMQ_PARTS = ("front-end ZeroMQ", "worker ZeroMQ")
"""Of revisions whose processes on one host exchange messages over ZeroMQ."""
TOTAL, OUTSIDE = "all", "outside decoding"


class Turn(NamedTuple):
    """One server's turn in one round. `cpu_ms`: CPU milliseconds an image, by part."""

    round: int
    server: str
    images_per_s: float
    cpu_ms: Mapping[str, float]


class Server:
    """A server with all its processes. Close it."""

    def __init__(self, path: str, port: int, processes: Mapping[str, ServerProcess]) -> None:
        self.path = path
        self.port = port
        self._processes = processes

    def wait(self, request: bytes) -> None:
        """Wait until it answers. Raises SystemExit if it never does."""
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s and not any(one.ended for one in self._processes.values()):
            with suppress(ConnectionBroken, TimeoutError, Refused):
                uvloop.run(self._ask(request))
                return
            time.sleep(0.1)
        logs = [one.log.read_text(encoding="utf-8") for one in self._processes.values()]
        raise SystemExit("\n".join(["a server gave no answer:", *logs]))

    async def _ask(self, request: bytes) -> None:
        async with Connections(HOST, self.port) as connections:
            await answer(connections, request)

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds until now, by process and thread."""
        seconds: dict[str, float] = {}
        for name, process in self._processes.items():
            for one in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
                for thread in Path(f"/proc/{one.pid}/task").iterdir():
                    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                        is_zmq = (thread / "comm").read_text(encoding="utf-8").startswith("ZMQ")
                        kind = "ZeroMQ" if is_zmq else "loop" if int(thread.name) == one.pid else "threads"
                        ran_ns = int((thread / "schedstat").read_text(encoding="ascii").split()[0])
                        seconds[f"{name} {kind}"] = seconds.get(f"{name} {kind}", 0.0) + ran_ns / 1e9
        return seconds

    def close(self) -> None:
        for process in self._processes.values():
            process.stop()


def start_tree(tree: Path, folder: Path, image_ms: float) -> Server:
    """A front-end and a worker of a tree. `folder` takes their socket and their logs."""
    folder.mkdir()
    port = free_ports(1)
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "client"))),
        "CONVMLP_WORKER_ADDRESS": f"ipc://{folder}/worker",
        "CONVMLP_HTTP_PORT": str(port),
        "CONVMLP_ACCESS_LOG": "false",
        IMAGE_MS: str(image_ms),
    }
    worker = [sys.executable, "-P", str(REPOSITORY / "benchmarks" / "timed_worker.py"), "--part", "worker"]
    commands = {"worker": worker, "front-end": [sys.executable, "-m", "service.cli", "rest"]}
    processes = {
        name: ServerProcess(command, environment, folder / f"{name}.log", tree) for name, command in commands.items()
    }
    return Server("/classify", port, processes)


def start_mosec(folder: Path, image_ms: float) -> Server:
    """mosec with a stage of processes that decode, and one process in front of the device. Raises CannotInstall."""
    python, port = python_of(MOSEC, REPOSITORY / ".bench"), free_ports(1)
    folder.mkdir()
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "BENCH_PORT": str(port),
        "BENCH_NETWORK": TIMED,
        "BENCH_MATERIAL": "",
        "BENCH_WORKERS": "1",
        "BENCH_THREADS": "1",
        "BENCH_BATCH": str(PEER_BATCH),
        "BENCH_WAIT_MS": str(PEER_WAIT_MS),
        IMAGE_MS: str(image_ms),
    }
    command = [str(python), "-m", "benchmarks.peers.mosec_worker"]
    return Server(PEERS[MOSEC], port, {MOSEC: ServerProcess(command, environment, folder / "mosec.log", REPOSITORY)})


async def answer(connections: Connections, request: bytes) -> None:
    """Raises ConnectionBroken, TimeoutError, Refused: there is no good answer."""
    response = await connections.request(request, ANSWER_S)
    if response.status != 200:
        raise Refused(f"HTTP {response.status}: {response.body[:1000]!r}")


async def images_answered(connections: Connections, requests: Sequence[bytes], clients: int, seconds: float) -> int:
    """The number of answers in a closed loop. Raises as `answer`."""
    until_s, turns = time.monotonic() + seconds, itertools.cycle(requests)
    answers = 0

    async def client() -> None:
        nonlocal answers
        while time.monotonic() < until_s:
            await answer(connections, next(turns))
            answers += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    return answers


async def by_turns(
    number: int, servers: Mapping[str, Server], jpegs: Sequence[bytes], clients: int, turns: int
) -> list[Turn]:
    """One round: all servers, and the decoder alone, one after the other and again."""
    order = list(servers) if number % 2 == 0 else list(servers)[::-1]
    images = dict.fromkeys(order, 0)
    spent: dict[str, dict[str, float]] = {name: {} for name in order}
    decoded, decoding_s = 0, 0.0
    async with AsyncExitStack() as stack:
        requests = {name: requests_of(servers[name].path, jpegs) for name in order}
        kept = {name: await stack.enter_async_context(Connections(HOST, servers[name].port)) for name in order}
        for name in order:
            await images_answered(kept[name], requests[name], clients, WARM_UP_S)
        passed_s = dict.fromkeys(order, 0.0)
        for _ in range(turns):
            for name in order:
                before, started_s = servers[name].cpu_s(), time.monotonic()
                images[name] += await images_answered(kept[name], requests[name], clients, TURN_S)
                passed_s[name] += time.monotonic() - started_s
                for part, seconds in servers[name].cpu_s().items():
                    spent[name][part] = spent[name].get(part, 0.0) + seconds - before.get(part, 0.0)
            started_s = time.thread_time()
            for jpeg in jpegs:
                network_input(jpeg, PREPROCESSING)
            decoding_s, decoded = decoding_s + time.thread_time() - started_s, decoded + len(jpegs)
            order.reverse()
    measured = []
    for name in servers:
        cpu_ms = {part: seconds / images[name] * 1000 for part, seconds in spent[name].items()}
        cpu_ms[TOTAL] = sum(cpu_ms.values())
        cpu_ms[OUTSIDE] = cpu_ms[TOTAL] - decoding_s / decoded * 1000
        measured.append(Turn(number, name, images[name] / passed_s[name], cpu_ms))
    return measured


def requests_of(path: str, jpegs: Sequence[bytes]) -> list[bytes]:
    return [request_bytes("POST", HOST, path, {"Content-Type": "image/jpeg"}, jpeg) for jpeg in jpegs]


@contextmanager
def started(
    trees: Mapping[str, Path], peers: Sequence[str], folder: Path, image_ms: float
) -> Iterator[dict[str, Server]]:
    """All servers, once they answer. A peer that cannot be installed is named and left out."""
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for at, (name, tree) in enumerate(trees.items()):
            servers[name] = start_tree(tree, folder / str(at), image_ms)
            stack.callback(servers[name].close)
        for name in peers:
            try:
                servers[name] = start_mosec(folder / name, image_ms)
            except CannotInstall as reason:
                print(f"without {reason}", file=sys.stderr)
            else:
                stack.callback(servers[name].close)
        for server in servers.values():
            server.wait(requests_of(server.path, pictures(None)[:1])[0])
        yield servers


def table(turns: Sequence[Turn], against: str) -> Iterator[str]:
    """Medians over the rounds, minimum and maximum in brackets; ratios are taken within a round."""
    names = list(dict.fromkeys(turn.server for turn in turns))
    by_name = {name: [turn for turn in turns if turn.server == name] for name in names}
    yield f"{'':24}" + "".join(f"{name:>24}" for name in names)
    yield f"{'images/s':24}" + "".join(
        f"{_spread([turn.images_per_s for turn in by_name[name]], 0):>24}" for name in names
    )
    for part in (OUTSIDE, TOTAL, *PARTS, *ZMQ_PARTS, *(f"{MOSEC} {kind}" for kind in ("loop", "threads"))):
        if any(part in turn.cpu_ms for turn in turns):
            cells = [[turn.cpu_ms[part] for turn in by_name[name] if part in turn.cpu_ms] for name in names]
            yield f"{'CPU ms: ' + part:24}" + "".join(f"{_spread(cell, 2):>24}" for cell in cells)
    for other in names[1:]:
        pairs = list(zip(by_name[OURS], by_name[other], strict=True))
        rates = _spread([our.images_per_s / their.images_per_s for our, their in pairs], 2)
        costs = _spread([our.cpu_ms[OUTSIDE] / their.cpu_ms[OUTSIDE] for our, their in pairs], 2)
        label = against if other != MOSEC else MOSEC
        yield f"{OURS} / {label}: images/s {rates}, CPU an image outside decoding {costs}"


def _spread(values: Sequence[float], digits: int) -> str:
    return Spread(tuple(values)).text(digits)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_host", description=__doc__)
    parser.add_argument("--against", metavar="REV", default=AGAINST, help="a git revision (default: %(default)s)")
    parser.add_argument("--rounds", type=within(int, 1, MAX_ROUNDS), default=3)
    parser.add_argument(
        "--seconds", type=within(float, 1.0, MAX_SECONDS), default=4.0, help="of load, a server a round"
    )
    parser.add_argument("--clients", type=within(int, 1, 256), default=CLIENTS)
    parser.add_argument("--image-ms", type=within(float, 0.0, 100.0), default=0.1, help="of the device for an image")
    parser.add_argument("--pictures", type=Path, help="a folder of JPEG files (default: crops of a photograph)")
    parser.add_argument("--peers", default=MOSEC, help="of mosec, or none (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="write all measurements as JSON")
    arguments = parser.parse_args()
    peers = [name for name in arguments.peers.split(",") if name and name != "none"]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"unknown peers: {', '.join(sorted(unknown))}; known: {', '.join(PEERS)}")
    jpegs = pictures(arguments.pictures)
    adopt_orphans()
    measured: list[Turn] = []
    with tempfile.TemporaryDirectory(prefix="bench-gpu-host-") as name:
        folder = Path(name)
        trees = {OURS: REPOSITORY, arguments.against: check_out(arguments.against, folder)}
        with started(trees, peers, folder, arguments.image_ms) as servers:
            for number in range(arguments.rounds):
                turns = max(1, round(arguments.seconds / TURN_S))
                measured += uvloop.run(by_turns(number, servers, jpegs, arguments.clients, turns))
                print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps([turn._asdict() for turn in measured], indent=2))
        return
    print(f"{arguments.clients} clients, {usable_cores()} cores, {arguments.image_ms:g} ms of the device an image")
    for line in table(measured, arguments.against):
        print(line)


if __name__ == "__main__":
    main()
