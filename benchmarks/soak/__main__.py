"""Soak the whole service: mixed callers, faults at random times, and an account at the end.

    python -m benchmarks.soak [--seconds 600] [--callers 12] [--seed 0] [--json FILE]

It starts `convmlp serve` on the embedded models. It checks that
- each request ends in exactly one way, in time: an answer equal to that of a quiet service, an honest refusal, the
  contract's error for a bad input, or what the fault of the moment excuses;
- after each fault the service is ready again;
- memory, descriptors and threads of each process stay flat;
- the gauges of work in progress are 0 in the end;
- SIGTERM, after the reader of its log closed the pipe, ends everything with status 0.

The exit status is 0 if all holds, else 1. The same seed gives the same callers and faults; their timing differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.soak.account import Account, End, Recovery
from benchmarks.soak.callers import Callers, Images
from benchmarks.soak.faults import Faults, small_file_system
from benchmarks.soak.resources import Resources
from benchmarks.soak.running import CannotStart, Service

PAUSE_S = (0.05, 0.5)
"""Bounds of a caller's pause between requests."""
GAP_S = (4.0, 9.0)
"""Bounds of the pause between the recovery from one fault and the next fault."""
QUIET_S = 5.0
"""Before the first fault."""
RECOVER_S = 120.0
SETTLE_S = 15.0
"""How long work in progress may take to reach 0 after the last request."""
STOP_S = 40.0
GAUGES = ("convmlp_in_flight_requests", "convmlp_queue_depth")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the run (default: 600)")
    parser.add_argument("--callers", type=int, default=12, help="concurrent callers (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of callers and faults (default: 0)")
    parser.add_argument("--json", type=Path, help="write the account to this file")
    options = parser.parse_args()
    account, resources = Account(), Resources()
    try:
        asyncio.run(_run(account, resources, options.seconds, options.callers, options.seed))
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 1
    print(_report(account, resources))
    if options.json is not None:
        options.json.write_text(json.dumps(_record(account, resources), indent=2) + "\n")
    return 1 if account.violation_count else 0


async def _run(account: Account, resources: Resources, seconds: float, callers_count: int, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, small_file_system(Path(folder)) as mounted:
        service = Service((), Path(folder))
        try:
            await asyncio.to_thread(service.wait_until_ready)
            callers = Callers(service.url, service.grpc_address, Images.make())
            await callers.learn()
            await _soak(Faults(service, callers, mounted), account, resources, seconds, callers_count, seed)
            await callers.close()
            await _idle(service.url, account)
            await asyncio.to_thread(service.close_log)
        finally:
            for wrong in await asyncio.to_thread(service.stop, STOP_S):
                account.violate(wrong)
    account.close()
    for grown in resources.growth():
        account.violate(grown)


async def _soak(
    faults: Faults, account: Account, resources: Resources, seconds: float, callers_count: int, seed: int
) -> None:
    until_s = time.monotonic() + seconds
    watching = asyncio.create_task(resources.watch(faults.service.processes))
    calling = [
        asyncio.create_task(_call(faults.callers, account, random.Random(f"{seed}-{number}"), until_s))
        for number in range(callers_count)
    ]
    try:
        await _disturb(faults, account, random.Random(seed), until_s)
        await asyncio.gather(*calling)
    finally:
        for task in (watching, *calling):
            task.cancel()
        await asyncio.gather(watching, *calling, return_exceptions=True)


async def _call(callers: Callers, account: Account, choices: random.Random, until_s: float) -> None:
    kinds = callers.kinds()
    names, weights = list(kinds), [weight for weight, _ in kinds.values()]
    while time.monotonic() < until_s:
        (kind,) = choices.choices(names, weights)
        account.sent[kind] += 1
        start_s = time.monotonic()
        account.count(kind, await kinds[kind][1](), start_s)
        await asyncio.sleep(choices.uniform(*PAUSE_S))


async def _disturb(faults: Faults, account: Account, choices: random.Random, until_s: float) -> None:
    """One fault after another, all kinds before one comes again, until there is no time for another."""
    kinds = faults.kinds()
    await asyncio.sleep(QUIET_S)
    order: list[str] = []
    while time.monotonic() + GAP_S[1] < until_s:
        if not order:
            order = choices.sample(sorted(kinds), len(kinds))
        name = order.pop()
        with account.fault(name, *kinds[name].excuses):
            at_s = time.monotonic() - account.start_s
            await kinds[name].cause()
            start_s = time.monotonic()
            if await _recovered(faults.callers):
                account.recoveries.append(Recovery(name, at_s, time.monotonic() - start_s))
            else:
                account.violate(f"{name}: not ready again within {RECOVER_S:g} s")
        await asyncio.sleep(min(choices.uniform(*GAP_S), max(0.0, until_s - time.monotonic())))


async def _recovered(callers: Callers) -> bool:
    """Wait until requests of both transports are answered."""
    kinds = callers.kinds()
    until_s = time.monotonic() + RECOVER_S
    while time.monotonic() < until_s:
        ends = [(await kinds[kind][1]()).end for kind in ("classify", "grpc classify")]
        if ends == [End.ANSWERED] * 2:
            return True
        await asyncio.sleep(0.1)
    return False


async def _idle(url: str, account: Account) -> None:
    """Check that no work is in progress any more."""
    left = {}
    async with httpx2.AsyncClient(base_url=url, timeout=10) as client:
        until_s = time.monotonic() + SETTLE_S
        while time.monotonic() < until_s:
            text = (await client.get("/metrics")).text
            samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
            left = {f"{one.name}{one.labels}": one.value for one in samples if one.name in GAUGES and one.value}
            if not left:
                return
            await asyncio.sleep(0.5)
    account.violate(f"work in progress after the last request: {left}")


def _report(account: Account, resources: Resources) -> str:
    columns = [end for end in End if account.total(end)]
    rows = [["request", "sent", *columns]]
    for kind in sorted(account.sent):
        ends = account.ends.get(kind, Counter[End]())
        rows.append([kind, str(account.sent[kind]), *(str(ends.get(end, 0)) for end in columns)])
    rows.append(["all", str(account.sent.total()), *(str(account.total(end)) for end in columns)])
    lines = [*_table(rows), ""]
    rows = [["fault", "times", "answers again after (s): median", "longest"]]
    for name in sorted({one.fault for one in account.recoveries}):
        seconds = sorted(one.seconds for one in account.recoveries if one.fault == name)
        rows.append([name, str(len(seconds)), f"{statistics.median(seconds):.2f}", f"{seconds[-1]:.2f}"])
    lines += [*_table(rows), ""]
    rows = [["process", "samples", "memory (MB): least", "most", "descriptors", "", "threads", ""]]
    for role, samples in sorted(resources.samples.items()):
        memory = [one.memory_bytes / 1e6 for one in samples]
        row = [role, str(len(samples)), f"{min(memory):.0f}", f"{max(memory):.0f}"]
        for counts in ([one.descriptors for one in samples], [one.threads for one in samples]):
            row += [str(min(counts)), str(max(counts))]
        rows.append(row)
    lines += [*_table(rows), ""]
    if account.violation_count:
        lines += [f"{account.violation_count} violations:", *(f"- {one}" for one in account.violations)]
    else:
        lines.append("No violations.")
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _record(account: Account, resources: Resources) -> dict[str, object]:
    return {
        "sent": dict(account.sent),
        "ends": {kind: dict(ends) for kind, ends in account.ends.items()},
        "recoveries": [{"fault": one.fault, "at_s": one.at_s, "seconds": one.seconds} for one in account.recoveries],
        "resources": {
            role: [[one.memory_bytes, one.descriptors, one.threads] for one in samples]
            for role, samples in resources.samples.items()
        },
        "violations": account.violations,
    }


if __name__ == "__main__":
    sys.exit(main())
