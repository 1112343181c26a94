"""The measurements of a run, as stored in JSON. Tables and plots are made from this alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from benchmarks.limit import Limit
from benchmarks.servers import Arrangement, Who


class Load(msgspec.Struct):
    """One measurement. Rates are per second, latencies in ms, costs in CPU ms per answer."""

    task: str
    loop: str
    """`closed`, whose `level` is the number of clients; or `open`, whose `level` is the share of the capacity."""
    level: float
    offered: float | None
    """Requests a second of an open loop."""
    seconds: float
    answers: float
    good: float
    """Answers within the deadline of the benchmark."""
    p50: float | None
    p95: float | None
    p99: float | None
    requests: int
    refused: dict[str, int]
    failed: dict[str, int]
    unsent: int
    server_cpu: float
    client_cpu: float
    resident_mib: float
    """Memory of all the server's processes, at the end."""
    foreign_cores: float
    """CPU that other processes used meanwhile, in cores. If it is not about 0 the figures are not reliable."""
    stages: dict[str, float] = {}
    """For this service, the mean of each stage in Server-Timing, ms."""
    parts_cpu: dict[str, float] = {}
    """For this service, CPU of each of its processes."""


class Visit(msgspec.Struct):
    """One server, started, measured and stopped, in one round."""

    round: int
    server: str
    network: str
    processes: int
    arrangement: Arrangement
    ready_s: float
    loads: list[Load]
    resident_mib: float
    """Memory of all its processes, before the first measurement."""
    trouble: str = ""
    """Why there are fewer measurements than there should be."""

    @property
    def who(self) -> Who:
        return Who(self.server, self.network, self.processes, self.arrangement)

    def load(self, task: str, loop: str, level: float) -> Load | None:
        return next((one for one in self.loads if (one.task, one.loop, one.level) == (task, loop, level)), None)


class Plan(msgspec.Struct):
    """The parameters of a run. An interrupted run resumes if its plan is the same."""

    rounds: int
    seconds: float
    peers: list[str]
    networks: list[str]
    arrangements: list[Arrangement]
    levels: list[int]
    shares: list[float]
    subjects: list[str]
    pictures: str


class Machine(msgspec.Struct):
    processor: str
    cores: int
    memory_gib: float
    system: str
    python: str
    torch: str


class Run(msgspec.Struct):
    plan: Plan
    machine: Machine
    started: str
    picture_bytes: int
    deadline_ms: float
    """In open loops."""
    visits: list[Visit] = []
    limits: list[Limit] = []
    """By round: the mean of the measurements right before and right after this service served the same networks."""
    unavailable: dict[str, str] = {}
    """Peers that could not be installed, and why."""
    versions: dict[str, str] = {}

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".new")
        scratch.write_bytes(msgspec.json.encode(_rounded(msgspec.to_builtins(self))) + b"\n")
        scratch.replace(path)

    def add_limit(self, number: int, limit: Limit) -> None:
        """Add the limit of networks that this round has not measured before."""
        while len(self.limits) <= number:
            self.limits.append(Limit([], []))
        before = self.limits[number]
        self.limits[number] = Limit([*before.networks, *limit.networks], [*before.decoding, *limit.decoding])

    def limits_of(self, model: str) -> list[Limit]:
        """By round, those with measurements of the model alone."""
        return [limit for limit in self.limits if any(one.model == model for one in limit.networks)]

    def of(self, who: Who) -> list[Visit]:
        """The visits of one server, by round."""
        return [one for one in self.visits if one.who == who]


def _rounded(value: Any) -> Any:  # noqa: ANN401  (whatever JSON holds)
    """Figures have four digits: noise beyond them would be most of the file."""
    match value:
        case float():
            return float(f"{value:.4g}")
        case dict():
            return {name: _rounded(one) for name, one in value.items()}
        case list():
            return [_rounded(one) for one in value]
        case _:
            return value


def read_run(path: Path) -> Run:
    return msgspec.json.decode(path.read_bytes(), type=Run)
