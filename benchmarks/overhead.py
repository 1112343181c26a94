"""The cost of the service's own Python: CPU time of front-end and worker for one POST to /classify, of two versions.

`benchmarks.noop` of each version serves: bodies are passed on instead of decoded, and the device answers at once. The
versions are this working tree and a revision of it, side by side in one environment. In each round both are started
again and loaded alternately, first by one client, then by several. The revision must have `benchmarks.noop` with the
flags `--http-port` and `--threads`, and processes whose command lines end in `rest` and `worker`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import uvloop

from benchmarks.answers import BODY_BYTES
from benchmarks.figures import Spread
from benchmarks.run import within
from benchmarks.servers import REPOSITORY
from service.cli.load.http import ConnectionBroken, Connections, request_bytes

AGAINST = "f01e10d"
OURS, THEIRS = "this tree", "the other"
CLIENTS = (1, 8)
PARTS = {"rest": "front-end", "worker": "worker"}
"""Names of the processes, by the last words of their command lines."""
BOTH = "both"
USER = " user"
"""Ends the names of the same times without the kernel's part: what Python and the libraries below it take."""
HOST = "127.0.0.1"
WARM_UP_S = 0.5
TURN_S = 0.2
START_S = 90.0
STOP_S = 10.0
ANSWER_S = 20.0
MAX_ROUNDS = 30
MAX_SECONDS = 30.0


class Load(NamedTuple):
    """`cpu_s`: by part."""

    answers: int
    cpu_s: Mapping[str, float]


def cpu_us(loads: Sequence[Load]) -> Mapping[str, float]:
    """µs of CPU an answer of all loads together, by part."""
    answers = sum(one.answers for one in loads)
    return {part: sum(one.cpu_s[part] for one in loads) / answers * 1e6 for part in loads[0].cpu_s}


class Measured(NamedTuple):
    """One load on one version in one round. `cpu_us`: µs of CPU an answer, by part."""

    round: int
    version: str
    threads: bool
    clients: int
    cpu_us: Mapping[str, float]


class Row(NamedTuple):
    """One part under one load: µs of CPU an answer of both versions, and the ratio of ours to theirs, by round."""

    threads: bool
    clients: int
    part: str
    ours: Spread
    theirs: Spread
    ratio: Spread


def rows(measured: Sequence[Measured]) -> Iterator[Row]:
    """The measurements of both versions in the same round."""
    loads = dict.fromkeys((one.threads, one.clients) for one in measured)
    for threads, clients in loads:
        of_load = [one for one in measured if (one.threads, one.clients) == (threads, clients)]
        ours, theirs = ({one.round: one.cpu_us for one in of_load if one.version == name} for name in (OURS, THEIRS))
        rounds = sorted(ours.keys() & theirs.keys())
        for part in (f"{name}{kind}" for kind in ("", USER) for name in (*PARTS.values(), BOTH)):
            pairs = [(_of(part, ours[number]), _of(part, theirs[number])) for number in rounds]
            yield Row(
                threads,
                clients,
                part,
                Spread(tuple(our for our, _ in pairs)),
                Spread(tuple(their for _, their in pairs)),
                Spread(tuple(our / their for our, their in pairs)),
            )


def _of(part: str, cpu_us: Mapping[str, float]) -> float:
    name, kind = part.removesuffix(USER), USER if part.endswith(USER) else ""
    return sum(cpu_us[f"{one}{kind}"] for one in (PARTS.values() if name == BOTH else (name,)))


class Version:
    """A running `benchmarks.noop` of a tree. Close it."""

    def __init__(self, tree: Path, threads: bool, log: Path) -> None:
        self._log = log
        command = [sys.executable, "-m", "benchmarks.noop", "--http-port", "0", *(["--threads"] if threads else [])]
        with log.open("wb") as file:
            self._process = psutil.Popen(
                command,
                env=_environment(tree),
                cwd=tree,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.port = 0

    def wait(self) -> None:
        """Wait until it answers. Raises SystemExit if it never does."""
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s and self._process.poll() is None:
            with suppress(psutil.Error):  # it may end between two looks
                for one in self._process.net_connections("tcp"):
                    self.port = one.laddr.port if one.status == psutil.CONN_LISTEN else self.port
            if self.port and self._answers():
                return
            time.sleep(0.1)
        raise SystemExit(f"a server gave no answer:\n{self._log.read_text(encoding='utf-8')}")

    def _answers(self) -> bool:
        async def ask() -> None:
            async with Connections(HOST, self.port) as connections:
                await answers_to(connections, 1, 0.0)

        try:
            uvloop.run(ask())
        except (ConnectionBroken, TimeoutError, Refused):
            return False
        return True

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds until now, by part: in all, and in user mode."""
        parts = {child.cmdline()[-1]: child for child in self._process.children()}
        seconds = {name: cpu_s(parts[word]) for word, name in PARTS.items()}
        return seconds | {f"{name}{USER}": parts[word].cpu_times().user for word, name in PARTS.items()}

    def close(self) -> None:
        """End the first process; the others end with it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except psutil.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a process's threads that live, as the scheduler counted them: in nanoseconds, not in ticks."""
    spent = [path.read_text(encoding="ascii") for path in Path(f"/proc/{process.pid}/task").glob("*/schedstat")]
    if not spent:  # a kernel without these files
        times = process.cpu_times()
        return float(times.user + times.system)
    return sum(int(text.split()[0]) for text in spent) / 1e9


class Refused(Exception):
    """An answer's status is not 200."""


async def answers_to(connections: Connections, clients: int, seconds: float) -> int:
    """The number of answers in a closed loop; each client sends at least one request.

    Raises:
        ConnectionBroken, TimeoutError, Refused: the answer is missing or has another status.
    """
    request = request_bytes("POST", HOST, "/classify", {"Content-Type": "image/jpeg"}, bytes(BODY_BYTES))
    until_s = time.monotonic() + seconds

    async def client() -> int:
        answers = 0
        while not answers or time.monotonic() < until_s:
            response = await connections.request(request, ANSWER_S)
            if response.status != 200:
                raise Refused(f"HTTP {response.status}: {response.body[:1000]!r}")
            answers += 1
        return answers

    return sum(await asyncio.gather(*(client() for _ in range(clients))))


def _environment(tree: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CONVMLP_")}
    return {**own, "PYTHONPATH": os.pathsep.join(map(str, (tree, tree / "client")))}


def check_out(revision: str, folder: Path) -> Path:
    """Write a revision's files into a folder, and generate its gRPC code.

    Raises:
        SystemExit: there is no such revision, or its files cannot be used.
    """
    tree = folder / "tree"
    try:
        archive = subprocess.run(
            ["git", "-C", str(REPOSITORY), "archive", revision], stdout=subprocess.PIPE, check=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(tree, filter="data")
        generate = [sys.executable, "proto/generate.py"]
        subprocess.run(generate, cwd=tree, env=_environment(tree), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"cannot use the revision {revision}: {error}\n{getattr(error, 'stderr', None) or ''}"
        ) from None
    return tree


def origin(tree: Path) -> Path:
    """The folder that `service` is imported from with `tree` as the working tree."""
    command = [sys.executable, "-c", "import service; print(service.__file__)"]
    ran = subprocess.run(command, cwd=tree, env=_environment(tree), capture_output=True, text=True, check=True)
    return Path(ran.stdout.strip()).parent.parent


@contextmanager
def started(trees: Mapping[str, Path], threads: bool, folder: Path) -> Iterator[Mapping[str, Version]]:
    """A server of each tree, once all of them answer. Their logs go to `folder`."""
    with ExitStack() as stack:
        versions = {}
        for name, tree in trees.items():
            versions[name] = version = Version(tree, threads, folder / f"{name}.log")
            stack.callback(version.close)
        for version in versions.values():
            version.wait()
        yield versions


def measure(trees: Mapping[str, Path], variants: Sequence[bool], rounds: int, seconds: float) -> list[Measured]:
    """All rounds; after Ctrl-C those measured before."""
    measured: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="bench-overhead-") as folder:
        try:
            for number in range(rounds):
                for threads in variants:
                    with started(trees, threads, Path(folder)) as versions:
                        for clients in CLIENTS:
                            costs = uvloop.run(by_turns(versions, clients, seconds / len(CLIENTS), number % 2 == 1))
                            measured += [Measured(number, name, threads, clients, cost) for name, cost in costs.items()]
                print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
    return measured


async def by_turns(
    versions: Mapping[str, Version], clients: int, seconds: float, backwards: bool
) -> Mapping[str, Mapping[str, float]]:
    """µs of CPU an answer, by version and part. Turns are short, for a machine's speed changes within seconds."""
    order = list(versions)[:: -1 if backwards else 1]
    turns = max(1, round(seconds / TURN_S))
    loads: dict[str, list[Load]] = {name: [] for name in order}
    async with AsyncExitStack() as stack:
        kept = {name: await stack.enter_async_context(Connections(HOST, versions[name].port)) for name in order}
        for name in order:
            await answers_to(kept[name], clients, WARM_UP_S)
        for _ in range(turns):
            for name in order:
                before = versions[name].cpu_s()
                answers = await answers_to(kept[name], clients, seconds / turns)
                after = versions[name].cpu_s()
                loads[name].append(Load(answers, {part: after[part] - before[part] for part in after}))
            order.reverse()
    return {name: cpu_us(loads[name]) for name in versions}


def table(measured: Sequence[Measured], revision: str) -> Iterator[str]:
    yield "µs of CPU for one answer: the median over the rounds, minimum and maximum in brackets"
    yield f"{'':39}{'this tree':>24}{revision[:24]:>24}{'this tree / ' + revision[:12]:>26}"
    for row in rows(measured):
        load = f"{'threads' if row.threads else 'no threads'}, {row.clients} client{'s' * (row.clients > 1)}"
        yield (f"{load:23}{row.part:16}{row.ours.text(0):>24}{row.theirs.text(0):>24}{row.ratio.text(2):>26}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--against", metavar="REV", default=AGAINST, help="a git revision (default: %(default)s)")
    parser.add_argument("--rounds", type=within(int, 1, MAX_ROUNDS), default=9)
    parser.add_argument(
        "--seconds", type=within(float, 0.2, MAX_SECONDS), default=4.0, help="of load on each version in each round"
    )
    parser.add_argument(
        "--threads",
        choices=("no", "yes", "both"),
        default="both",
        help="whether each body passes through a thread, as for decoding (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="write all measurements as JSON")
    arguments = parser.parse_args()
    # SIGINT and SIGTERM both end the servers as well; a background job would ignore SIGINT.
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="bench-overhead-tree-") as folder:
        trees = {OURS: REPOSITORY, THEIRS: check_out(arguments.against, Path(folder))}
        for tree in trees.values():
            if (found := origin(tree)) != tree:
                raise SystemExit(f"{tree} would be measured with the service of {found}")
        variants = {"no": [False], "yes": [True], "both": [False, True]}[arguments.threads]
        measured = measure(trees, variants, arguments.rounds, arguments.seconds)
    if arguments.json:
        print(json.dumps([one._asdict() for one in measured], indent=2))
        return
    for line in table(measured, arguments.against):
        print(line)


if __name__ == "__main__":
    main()
