from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.material import Material
from benchmarks.network import Kind
from benchmarks.results import Machine, Plan, Run
from benchmarks.schedule import LARGE_MAIN, MAIN, servers_of, steps_of
from benchmarks.servers import LARGE, Arrangement, Who, ours, peer, start_of
from benchmarks.visit import Step
from service.settings import usable_cores
from tests.benchmarks.runs import Measured, load

PEERS = ["fastapi", "litserve", "mosec"]
ADVISED = Arrangement.AS_ADVISED


@pytest.fixture
def begun() -> Measured:
    plan = Plan(2, 3.0, PEERS, list(Kind), list(Arrangement), [1, 32], [0.8], ["classify"], "")
    machine = Machine("a processor", 2, 8.0, "Linux", "3.11", "2.13")
    return Measured(Run(plan, machine, "2026-01-01T00:00", 100_000, 500.0))


def advised(run: Run, number: int) -> list[Who]:
    return [one.who for one in servers_of(run, number) if one.who.arrangement is ADVISED]


def test_all_peers_begin_and_the_best_of_each_arrangement_go_on(begun: Measured) -> None:
    """Rounds after the first measure the arrangements that were best in it."""
    assert advised(begun.run, 0) == [
        Who(name, kind, 1, ADVISED) for kind in (Kind.EAGER, Kind.FASTEST) for name in PEERS
    ]
    for rate, name in enumerate(PEERS):
        begun.add(0, name, Kind.FASTEST, load(100 - rate))
        begun.add(0, name, Kind.FASTEST, load(10 + rate), arrangement=ADVISED)
    assert advised(begun.run, 1) == [Who(name, Kind.FASTEST, 1, ADVISED) for name in ("mosec", "litserve")]
    later = [one.who for one in servers_of(begun.run, 1)]
    assert [who.server for who in later if who not in advised(begun.run, 1)] == [*("convmlp",) * 2, *PEERS[:2]]


def test_as_advised_is_left_out_where_the_plan_has_it_not(begun: Measured) -> None:
    """A quick run measures tuned peers only."""
    begun.run.plan.arrangements = [Arrangement.TUNED]
    assert advised(begun.run, 0) == []
    assert {one.who for one in servers_of(begun.run, 0)} >= {MAIN, Who("mosec", Kind.EAGER)}


def test_as_advised_is_measured_at_the_main_level_alone(begun: Measured) -> None:
    """A full run measures the eager network too: its tuned peers at every level, and later in open loops."""
    begun.add(0, "mosec", Kind.EAGER, load(30))
    begun.add(0, "mosec", Kind.EAGER, load(20), arrangement=ADVISED)
    main_level = Step("classify", "closed", 32, 3.0)
    assert list(steps_of(begun.run, peer(Who("mosec", Kind.EAGER, 1, ADVISED)), 1)) == [main_level]
    tuned = list(steps_of(begun.run, peer(Who("mosec", Kind.EAGER)), 1))
    assert tuned == [Step("classify", "closed", 1, 3.0), main_level, Step("classify", "open", 0.8, 6.0)]


def test_the_papers_sizes_have_a_visit_of_their_own(begun: Measured, tmp_path: Path) -> None:
    """Large models are not loaded in visits that are compared with peers: they would change memory and time."""
    begun.run.plan.subjects = ["classify", "large"]
    assert [one.who for one in servers_of(begun.run, 1) if one.who.network == LARGE] == [LARGE_MAIN]
    steps = list(steps_of(begun.run, ours(LARGE), 1))
    assert [(step.task, step.loop, step.level) for step in steps] == [("detect", "closed", 8), ("segment", "closed", 8)]
    (tmp_path / "mode").write_text("bf16")
    start = start_of(ours(LARGE), 1234, Material(tmp_path), tmp_path)
    assert "retinanet_bench_s,sem_fpn_bench_s" in start.command


@pytest.mark.parametrize("arrangement", list(Arrangement))
def test_each_arrangement_uses_every_core_once(arrangement: Arrangement, tmp_path: Path) -> None:
    """Copies times threads equal the cores: no core is idle, and no two threads share one."""
    start = start_of(peer(Who("fastapi", Kind.EAGER, 1, arrangement)), 1234, Material(tmp_path), tmp_path)
    cores = str(usable_cores())
    copies_and_threads = ("1", cores) if arrangement is ADVISED else (cores, "1")
    assert (start.environment["BENCH_WORKERS"], start.environment["BENCH_THREADS"]) == copies_and_threads
    assert start.environment["OMP_NUM_THREADS"] == copies_and_threads[1]
