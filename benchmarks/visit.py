"""One server in one round: start it, wait for right answers, measure, stop it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import uvloop

from benchmarks.answers import Check, task_requests
from benchmarks.material import Material
from benchmarks.processes import ServerProcess, free_ports
from benchmarks.results import Load, Visit
from benchmarks.servers import LARGE, OURS, REPOSITORY, Server, models_of, start_of
from service.cli.load.http import ConnectionBroken, Connections, Response
from service.cli.load.loops import ANSWERED, Measurement, Outcome, Sender, Status, closed_loop, open_loop
from service.cli.load.service import outcome_of

DEADLINE_S = 0.5
"""In an open loop a later answer does not count. Requests to this service carry it as their deadline."""
PATIENCE_S = 20.0
START_S = 150.0
WARM_UP_S = 1.0
LARGE_WARM_UP_S = 2.0
OVERLOAD_WARM_UP_S = 3.0
"""Enough for queues to reach their steady state."""
SETTLE_S = {True: 180.0, False: 15.0}
"""How long servers may take to become idle once they answer."""
WRONG = Outcome(Status.FAILED, "wrong answer")
LATE = Outcome(Status.FAILED, f"no answer within {PATIENCE_S:g} s")


class NotReady(Exception):
    """Why a server cannot be measured."""


@dataclass(frozen=True, slots=True)
class Step:
    """`level`: clients of a closed loop, or the share of the capacity, in an open loop."""

    task: str
    loop: str
    level: float
    seconds: float


@dataclass
class Target:
    """A running server and its requests."""

    server: Server
    port: int
    material: Material
    timings: list[bytes] = field(default_factory=list)
    """Its Server-Timing headers since they were cleared."""
    answered_s: list[float] = field(default_factory=list)
    """Times of its right answers since they were cleared."""

    @asynccontextmanager
    async def ask(self, task: str, deadline_s: float | None = None) -> AsyncIterator[Sender]:
        requests, check = task_requests(self.server, task, f"127.0.0.1:{self.port}", self.material, deadline_s)
        async with Connections("127.0.0.1", self.port) as connections:

            async def ask(number: int) -> Outcome:
                at = number % len(requests)
                try:
                    response = await connections.request(requests[at], PATIENCE_S)
                except TimeoutError:
                    return LATE
                except ConnectionBroken as error:
                    return Outcome(Status.FAILED, str(error))
                outcome = self._outcome(response, at, check)
                if outcome.status is Status.ANSWERED:
                    self.answered_s.append(time.monotonic())
                return outcome

            yield ask

    def _outcome(self, response: Response, at: int, check: Check) -> Outcome:
        if response.status != 200:
            return outcome_of(response)
        if self.server.who.server == OURS:
            self.timings.append(response.headers.get(b"server-timing", b""))
        try:
            return ANSWERED if check(at, response.body) else WRONG
        except (ValueError, LookupError, msgspec.MsgspecError):
            return Outcome(Status.FAILED, "an answer of another form")


def visit(server: Server, steps: Sequence[Step], number: int, material: Material, folder: Path) -> Visit:
    """Measure a server. Open loops need a closed one before them, whose best rate is the capacity.

    Raises:
        CannotInstall: the server is not available here.
    """
    done = Visit(number, *server.who, ready_s=0.0, loads=[], resident_mib=0.0)
    port = free_ports(6)
    start = start_of(server, port, material, folder)
    log = folder / "logs" / f"{str(server.who).replace('/', '-').replace(' ', '-')}.log"
    process = ServerProcess(start.command, start.environment, log, REPOSITORY)
    try:
        target = Target(server, port, material)
        done.ready_s = _await_ready(process, target)
        process.settle(SETTLE_S[server.who.server == OURS])
        done.resident_mib = process.usage().resident_bytes / 2**20
        capacity = 0.0
        for step in steps:
            if step.loop == "open" and not capacity:
                raise NotReady("it answered nothing in time")
            done.loads.append(_measure(process, target, step, capacity))
            if step.loop == "closed" and step.task == "classify":
                capacity = max(capacity, done.loads[-1].answers)
    except NotReady as error:
        done.trouble = str(error)
    finally:
        process.stop()
    return done


def _await_ready(process: ServerProcess, target: Target) -> float:
    """Seconds until it gave two right answers to different pictures in each of its tasks."""
    began_s = time.monotonic()
    last = ""
    while time.monotonic() < began_s + START_S:
        if process.ended:
            raise NotReady(f"it ended; see {process.log.name}")
        outcome = uvloop.run(_try(target))
        if outcome.status is Status.ANSWERED:
            return time.monotonic() - began_s
        last = outcome.reason
        time.sleep(0.2)
    raise NotReady(f"no right answer within {START_S:g} s: {last}")


async def _try(target: Target) -> Outcome:
    outcome = ANSWERED
    for task in models_of(target.server.who) if target.server.who.network == LARGE else ("classify",):
        async with target.ask(task) as ask:
            for number in (0, 1):
                outcome = await ask(number)
                if outcome.status is not Status.ANSWERED:
                    return outcome
    return outcome


def _measure(process: ServerProcess, target: Target, step: Step, capacity: float) -> Load:
    target.timings.clear()
    target.answered_s.clear()
    before, parts, own_s, all_s = process.usage(), process.cpu_by_part(), time.process_time(), _busy_s()
    began_s = time.monotonic()
    window_s = began_s + _warm_up_s(target.server, step)
    offered = step.level * capacity if step.loop == "open" else None
    tally = uvloop.run(_load(target, step, offered))
    wall_s = time.monotonic() - began_s
    after = process.usage()
    server_s = after.cpu_s - before.cpu_s
    client_s = time.process_time() - own_s
    foreign = max(0.0, _busy_s() - all_s - server_s - client_s) / wall_s
    # All answers, because CPU was counted over the warm-up and the wait at the end as well.
    per_answer_ms = 1000 / max(1, len(target.answered_s))
    p50, p95, p99 = tally.percentiles_ms(50, 95, 99) if tally.latencies_s else (None, None, None)
    parts_s = {name: value - parts.get(name, 0.0) for name, value in process.cpu_by_part().items()}
    return Load(
        task=step.task,
        loop=step.loop,
        level=step.level,
        offered=offered,
        seconds=step.seconds,
        answers=tally.per_second if step.loop == "open" else steady_rate(target.answered_s, window_s, step.seconds),
        good=sum(latency_s <= DEADLINE_S for latency_s in tally.latencies_s) / step.seconds,
        p50=p50,
        p95=p95,
        p99=p99,
        requests=tally.requests,
        refused=dict(tally.refused),
        failed=dict(tally.failed),
        unsent=tally.unsent,
        server_cpu=server_s * per_answer_ms,
        client_cpu=client_s * per_answer_ms,
        resident_mib=after.resident_bytes / 2**20,
        foreign_cores=foreign,
        stages=_mean_stages(target.timings),
        parts_cpu={name: value * per_answer_ms for name, value in parts_s.items()}
        if target.server.who.server == OURS
        else {},
    )


async def _load(target: Target, step: Step, offered: float | None) -> Measurement:
    async with target.ask(step.task, None if offered is None else DEADLINE_S) as ask:
        warm_up_s = _warm_up_s(target.server, step)
        if offered is None:
            return await closed_loop(ask, int(step.level), step.seconds, warm_up_s)
        return await open_loop(ask, offered, step.seconds, warm_up_s)


def _warm_up_s(server: Server, step: Step) -> float:
    if server.who.network == LARGE:
        return LARGE_WARM_UP_S
    return OVERLOAD_WARM_UP_S if step.loop == "open" and step.level > 1 else WARM_UP_S


def steady_rate(answered_s: Sequence[float], from_s: float, seconds: float) -> float:
    """Answers a second in a window: the slope of the line that fits their number over time best.

    That is their count, each weighted by 6 u (1 - u), where it arrives at u of the window's length. A batch of answers
    is either within the window or not, so with few batches a plain count is wrong by one of them.
    """
    parts = ((at_s - from_s) / seconds for at_s in answered_s)
    return sum(6 * part * (1 - part) for part in parts if 0 < part < 1) / seconds


def _mean_stages(timings: Sequence[bytes]) -> dict[str, float]:
    """Stages of Server-Timing headers such as `decode;dur=1.3, queue;dur=0.2`."""
    sums: defaultdict[str, float] = defaultdict(float)
    for line in timings:
        for part in filter(None, line.split(b",")):
            name, is_duration, value = part.strip().partition(b";dur=")
            if not is_duration:  # the size of the batch
                continue
            sums[name.decode("ascii")] += float(value)
    return {name: total / len(timings) for name, total in sums.items()}


def _busy_s() -> float:
    """CPU seconds that the machine has worked."""
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - times.iowait)
