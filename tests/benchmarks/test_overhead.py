from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import uvloop

from benchmarks.overhead import OURS, THEIRS, Load, Measured, by_turns, cpu_us, rows, started, table
from benchmarks.servers import REPOSITORY


def measured(number: int, version: str, front_end: float, worker: float, clients: int = 1) -> Measured:
    return Measured(
        number,
        version,
        False,
        clients,
        {"front-end": front_end, "worker": worker, "front-end user": front_end / 2, "worker user": worker / 2},
    )


def test_cpu_is_shared_by_the_answers_of_all_turns() -> None:
    """A version's turn counts by its answers: 3 ms for 10 and 5 ms for 30 are 200 µs for one."""
    loads = [Load(10, {"front-end": 0.003, "worker": 0.001}), Load(30, {"front-end": 0.005, "worker": 0.001})]
    assert cpu_us(loads) == pytest.approx({"front-end": 200.0, "worker": 50.0})


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is twice as slow in one round moves no ratio; `both` is the ratio of the sums."""
    runs = [
        measured(0, OURS, 60, 20),
        measured(0, THEIRS, 100, 100),
        measured(1, THEIRS, 200, 200),
        measured(1, OURS, 120, 40),
    ]
    front_end, worker, both, *_ = rows(runs)
    assert [row.ratio.values for row in (front_end, worker, both)] == [(0.6, 0.6), (0.2, 0.2), (0.4, 0.4)]
    assert front_end.ours.values == (60.0, 120.0)
    assert both.theirs.values == (200.0, 400.0)


def test_an_interrupted_round_does_not_count() -> None:
    """What was measured of one version alone in a round is left out; each load has rows of its own."""
    runs = [
        measured(0, OURS, 60, 20),
        measured(0, THEIRS, 100, 100),
        measured(0, OURS, 30, 10, clients=8),
        measured(0, THEIRS, 60, 20, clients=8),
        measured(1, OURS, 1, 1),
    ]
    assert [(row.clients, row.part, row.ratio.values) for row in rows(runs) if row.part == "both"] == [
        (1, "both", (0.4,)),
        (8, "both", (0.5,)),
    ]
    _, heading, *lines = table(runs, "v1")
    assert "this tree / v1" in heading
    assert lines[-1].split() == ["no", "threads,", "8", "clients", "both", "user", "20", "40", "0.50"]


def test_cpu_of_front_end_and_worker_is_measured(tmp_path: Path) -> None:
    """Both processes of both servers spend time on an answer, and none of them is left at the end."""
    before = psutil.Process().children(recursive=True)
    with started({OURS: REPOSITORY, THEIRS: REPOSITORY}, True, tmp_path) as versions:
        costs = uvloop.run(by_turns(versions, 2, 0.2, False))
    assert costs.keys() == {OURS, THEIRS}
    assert all(cost[part] > 0 for cost in costs.values() for part in ("front-end", "worker"))
    assert psutil.Process().children(recursive=True) == before
