"""CPU a picture of `convmlp batch` and of `convmlp serve` with the same pictures, interleaved.

    python -m benchmarks.batch FOLDER [--task classify] [--precision fp32] [--pictures 600] [--rounds 3]

In each round the service gets all pictures from 32 clients, and then a batch job scores them, with the same model in
the same precision. Each figure is of all processes: of the service while it answers, of the job from an eighth of its
rows to its last ones, so that neither has its start in it. `start` is the job's CPU before its first row. Other flags
are passed on to the job, such as `--address local`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.run import within
from model.types import Task
from service.cli.load.http import Connections, request_bytes
from tests.e2e.convmlp_process import running_service

CLIENTS = 32
ANSWER_S = 60.0
POLL_S = 0.02
SETTLED = 8
"""The job's first part of so many is not measured."""


class Round(NamedTuple):
    """CPU seconds a picture of both, and those of the job before its first row."""

    service_s: float
    job_s: float
    start_s: float


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="pictures: the first JPEGs are taken")
    parser.add_argument("--task", choices=list(Task), default=Task.CLASSIFY.value)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--pictures", type=within(int, 50, 20_000), default=600)
    parser.add_argument("--rounds", type=within(int, 1, 30), default=3)
    arguments, flags = parser.parse_known_args()
    paths = sorted(arguments.folder.rglob("*.jpg"))[: arguments.pictures]
    if len(paths) < arguments.pictures:
        raise SystemExit(f"{arguments.folder} has {len(paths)} JPEGs; {arguments.pictures} are needed")
    rounds = []
    print("| round | service, ms CPU a picture | batch | ratio | batch's start, s |")
    print("|---|---|---|---|---|")
    with running_service("--precision", arguments.precision) as service, tempfile.TemporaryDirectory() as folder:
        command = ["--task", arguments.task, "--precision", arguments.precision, *flags]
        pictures = Path(folder, "pictures.txt")
        pictures.write_text("".join(f"{path.absolute()}\n" for path in paths))
        tree = processes_of(service.process.pid)
        asyncio.run(answer_all(service.url, arguments.task, paths[: CLIENTS * 2]))
        for number in range(arguments.rounds):
            before_s = cpu_s(tree)
            asyncio.run(answer_all(service.url, arguments.task, paths))
            service_s = (cpu_s(tree) - before_s) / len(paths)
            job_s, start_s = score_all(pictures, Path(folder, f"out-{number}"), command, len(paths))
            rounds.append(Round(service_s, job_s, start_s))
            print(f"| {number + 1} | {row(rounds[-1:])} |", flush=True)
    print(f"| median | {row(rounds)} |")


def row(rounds: Sequence[Round]) -> str:
    ratio = statistics.median(one.job_s / one.service_s for one in rounds)
    service_s, job_s, start_s = (statistics.median(values) for values in zip(*rounds, strict=True))
    return f"{service_s * 1000:.2f} | {job_s * 1000:.2f} | {ratio:.2f} | {start_s:.1f}"


async def answer_all(url: str, task: str, paths: Sequence[Path]) -> None:
    """Send all pictures to the service. Raises SystemExit where one has no answer."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    pending: Iterator[Path] = iter(paths)
    async with Connections(host, int(port)) as connections:

        async def client() -> None:
            for path in pending:
                request = request_bytes("POST", host, f"/{task}", {}, path.read_bytes())
                response = await connections.request(request, ANSWER_S)
                if response.status != 200:
                    raise SystemExit(f"{path}: {response.status} {response.body[:200]!r}")

        await asyncio.gather(*(client() for _ in range(CLIENTS)))


def score_all(pictures: Path, out: Path, command: Sequence[str], count: int) -> tuple[float, float]:
    """CPU seconds a picture of a job, and those before its first row. Raises SystemExit where it fails."""
    job = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "batch", str(pictures), str(out), *command],
        stdout=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.startswith("CONVMLP_")},
    )
    samples: list[tuple[int, float]] = []
    start_s = 0.0
    while job.poll() is None:
        with suppress(psutil.NoSuchProcess, FileNotFoundError):
            rows = sum(path.read_bytes().count(b"\n") for path in out.glob("part-*"))
            spent_s = cpu_s(processes_of(job.pid))
            start_s = start_s if rows else spent_s
            if count / SETTLED <= rows < count:
                samples.append((rows, spent_s))
        time.sleep(POLL_S)
    if job.returncode or len(samples) < 2:
        raise SystemExit(f"the job ended with status {job.returncode} and {len(samples)} samples; take more pictures")
    (first, first_s), (last, last_s) = samples[0], samples[-1]
    return (last_s - first_s) / (last - first), start_s


def processes_of(pid: int) -> list[psutil.Process]:
    """A process, and all below it."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(one.user + one.system for one in times))


if __name__ == "__main__":
    main()
