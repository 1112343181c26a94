"""`make bench`: start the service on the embedded models, load each task, print a table.

Rounds are interleaved over tasks, concurrencies and transports, so that a disturbance of the machine hits all
alike; the table shows medians over rounds and, in brackets, the spread.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from benchmarks.load import Ask, Measured, closed_loop, grpc_unary, rest
from model.bundle import REFERENCE_PICTURE
from tests.e2e.running import running_service

TASKS = ("classify", "detect", "segment")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--pictures", type=Path, help="folder of JPEG files (default: the reference picture)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma separated")
    parser.add_argument("--concurrency", default="1,8,32", help="comma separated")
    parser.add_argument("--transports", default="rest,grpc", help="comma separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    arguments, flags = parser.parse_known_args()
    files = sorted(arguments.pictures.glob("*.jp*g"))[:64] if arguments.pictures else [REFERENCE_PICTURE]
    pictures = [file.read_bytes() for file in files]
    levels = [int(level) for level in arguments.concurrency.split(",")]
    transports = arguments.transports.split(",")
    measured: dict[tuple[str, int, str], list[Measured]] = defaultdict(list)
    started_s = time.monotonic()
    with running_service(*flags) as service:
        print(f"ready after {time.monotonic() - started_s:.1f} s; {len(pictures)} pictures")
        for _ in range(arguments.rounds):
            for task, level, transport in itertools.product(arguments.tasks.split(","), levels, transports):
                client = rest(service.url, task) if transport == "rest" else grpc_unary(service.grpc_address, task)
                once = asyncio.run(_measure(client, pictures, level, arguments.seconds))
                measured[task, level, transport].append(once)
        for part in ("worker-0", "rest-0", "grpc-0"):
            print(f"{part}: {resident_mib(service.pid_of(part)):.0f} MiB resident")
    print(f"{'task':10}{'clients':>8}{'transport':>11}{'requests/s':>22}{'p50 ms':>20}{'p99 ms':>20}{'failed':>8}")
    for (task, level, transport), rounds in measured.items():
        columns = (
            [one.per_second for one in rounds],
            [one.percentile_ms(0.5) for one in rounds],
            [one.percentile_ms(0.99) for one in rounds],
        )
        rate, p50, p99 = (f"{statistics.median(c):.1f} [{min(c):.1f}-{max(c):.1f}]" for c in columns)
        print(f"{task:10}{level:>8}{transport:>11}{rate:>22}{p50:>20}{p99:>20}{sum(one.failures for one in rounds):>8}")


async def _measure(
    client: AbstractAsyncContextManager[Ask], pictures: Sequence[bytes], concurrency: int, seconds: float
) -> Measured:
    async with client as ask:
        return await closed_loop(ask, pictures, concurrency, seconds)


def resident_mib(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
