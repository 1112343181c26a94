from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.figures import best_peer, ratio, share_of_limit
from benchmarks.limit import DecodingAlone, Limit, NetworkAlone
from benchmarks.network import Kind
from benchmarks.report import BEGIN, END, merged, report
from benchmarks.results import Load, Machine, Plan, Run, Visit, read_run
from benchmarks.servers import OTHER_MODELS

MODEL = "convmlp_bench_s"


def load(answers: float, level: float = 32, loop: str = "closed", **more: object) -> Load:
    given = {
        "task": "classify",
        "loop": loop,
        "level": level,
        "offered": None,
        "seconds": 4.0,
        "answers": answers,
        "good": answers,
        "p50": 10.0,
        "p95": 20.0,
        "p99": 30.0,
        "requests": 100,
        "refused": {},
        "failed": {},
        "unsent": 0,
        "server_cpu": 12.0,
        "client_cpu": 0.1,
        "resident_mib": 500.0,
        "foreign_cores": 0.0,
    }
    return Load(**{**given, **more})  # type: ignore[arg-type]


def limit(network: float, decoding: float) -> Limit:
    models = (MODEL, *OTHER_MODELS)
    networks = [
        NetworkAlone(model, kind, {"1 x 1": network / 2, "2 x 4": network}, 8.0) for model in models for kind in Kind
    ]
    return Limit(networks, [DecodingAlone(model, decoding, 2.0) for model in models])


@dataclass
class Measured:
    """A run of so many rounds, to which visits are added."""

    run: Run

    def add(self, number: int, server: str, network: str, *loads: Load) -> None:
        self.run.visits.append(Visit(number, server, network, 1, 3.0, list(loads), 480.0))


@pytest.fixture
def measured() -> Measured:
    plan = Plan(2, 4.0, ["mosec", "fastapi"], list(Kind), [1, 32, 128], [0.8, 1.2], ["classify"], "")
    machine = Machine("a processor", 2, 8.0, "Linux", "3.11", "2.13")
    run = Run(plan, machine, "2026-01-01T00:00", 100_000, 500.0, limits=[limit(200, 300), limit(100, 300)])
    return Measured(run)


def test_ratios_are_taken_round_by_round(measured: Measured) -> None:
    """A round in which the whole machine was slower changes no ratio."""
    measured.add(0, "convmlp", Kind.FASTEST, load(90))
    measured.add(0, "mosec", Kind.EAGER, load(30))
    measured.add(1, "mosec", Kind.EAGER, load(3))
    measured.add(1, "convmlp", Kind.FASTEST, load(9))
    assert ratio(measured.run, ("convmlp", Kind.FASTEST, 1), ("mosec", Kind.EAGER, 1)).values == (3, 3)


def test_the_limit_is_of_the_network_and_decoding_one_after_the_other(measured: Measured) -> None:
    """1 / (1/200 + 1/300) = 120 pictures a second in the first round, 75 in the second."""
    for number in (0, 1):
        measured.add(number, "convmlp", Kind.FASTEST, load(60))
    assert share_of_limit(measured.run, "convmlp", Kind.FASTEST).values == pytest.approx((0.5, 0.8))


def test_the_best_peer_is_of_one_network_and_never_this_service(measured: Measured) -> None:
    """By the median rate; a peer that was measured with another network is not compared."""
    measured.add(0, "convmlp", Kind.EAGER, load(99))
    measured.add(0, "fastapi", Kind.EAGER, load(20))
    measured.add(0, "mosec", Kind.EAGER, load(30))
    measured.add(0, "litserve", Kind.FASTEST, load(90))
    assert best_peer(measured.run, Kind.EAGER) == "mosec"
    assert best_peer(measured.run, Kind.FP32) is None


def test_the_report_tells_medians_and_what_is_missing(measured: Measured) -> None:
    """Medians with least and most; peers that could not be had, or failed, are said, not left out."""
    run = measured.run
    for number, answers in enumerate((60.0, 70.0)):
        measured.add(number, "convmlp", Kind.FASTEST, load(answers), load(40, 1), load(50, 0.8, "open"))
    measured.add(0, "mosec", Kind.EAGER, load(30, failed={"wrong answer": 2}))
    run.visits.append(Visit(0, "fastapi", Kind.EAGER, 1, 0.0, [], 0.0, trouble="it ended"))
    run.unavailable["triton"] = "triton: no such package"
    text = report(run)
    assert "| **convmlp** | fastest | 40.0 [40.0 to 40.0] | 65.0 [60.0 to 70.0] | - |" in text
    assert "| mosec | eager | - | 30.0 | - |" in text
    assert "triton is missing: triton: no such package" in text
    assert "fastapi with the network eager, round 1: it ended" in text
    assert "mosec with the network eager, round 1, failures: 2 x wrong answer" in text
    assert "| fastest, over the best peer with eager (mosec) | 2.00 | ≥ 3 |" in text


def test_results_survive_the_file(measured: Measured, tmp_path: Path) -> None:
    """What is read back is what was written: the tables can be made anew without a run."""
    measured.add(0, "convmlp", Kind.FASTEST, load(60, stages={"decode": 1.5}))
    measured.run.write(tmp_path / "run.json")
    assert read_run(tmp_path / "run.json") == measured.run


def test_only_the_part_between_the_markers_changes() -> None:
    """Text by hand stays, before and after, however often the report is written."""
    page = f"# Title\n\n{BEGIN}\nold\n{END}\nmore\n"
    once = merged(page, "new")
    assert once == f"# Title\n\n{BEGIN}\nnew\n{END}\nmore\n"
    assert merged(once, "new") == once
    assert merged("", "new") == f"{BEGIN}\nnew\n{END}\n"


def test_a_page_without_markers_is_not_touched() -> None:
    """A page that somebody wrote has no place for the figures until it has markers."""
    with pytest.raises(ValueError, match="measured: begin"):
        merged("# Title\n", "new")
