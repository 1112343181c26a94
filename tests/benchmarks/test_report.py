from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.figures import best_peer, ratio, share_of_limit
from benchmarks.goals import comparisons
from benchmarks.limit import DecodingAlone, Limit, NetworkAlone, mean_limit
from benchmarks.network import Kind
from benchmarks.report import BEGIN, END, merged, report
from benchmarks.results import Machine, Plan, Run, Visit, read_run
from benchmarks.servers import Arrangement, Who
from tests.benchmarks.runs import MODEL, Measured, limit, load


@pytest.fixture
def measured() -> Measured:
    peers, arrangements = ["mosec", "fastapi"], list(Arrangement)
    plan = Plan(2, 4.0, peers, list(Kind), arrangements, [1, 32, 128], [0.8, 1.2], ["classify"], "")
    machine = Machine("a processor", 2, 8.0, "Linux", "3.11", "2.13")
    run = Run(plan, machine, "2026-01-01T00:00", 100_000, 500.0, limits=[limit(200, 300), limit(100, 300)])
    return Measured(run)


def test_ratios_are_taken_round_by_round(measured: Measured) -> None:
    """A round in which the whole machine was slower changes no ratio."""
    measured.add(0, "convmlp", Kind.FASTEST, load(90))
    measured.add(0, "mosec", Kind.EAGER, load(30))
    measured.add(1, "mosec", Kind.EAGER, load(3))
    measured.add(1, "convmlp", Kind.FASTEST, load(9))
    assert ratio(measured.run, Who("convmlp", Kind.FASTEST), Who("mosec", Kind.EAGER)).values == (3, 3)


def test_the_limit_is_of_the_network_and_decoding_one_after_the_other(measured: Measured) -> None:
    """1 / (1/200 + 1/300) = 120 pictures a second in the first round, 75 in the second."""
    for number in (0, 1):
        measured.add(number, "convmlp", Kind.FASTEST, load(60))
    assert share_of_limit(measured.run, Who("convmlp", Kind.FASTEST)).values == pytest.approx((0.5, 0.8))


def test_the_best_peer_is_of_one_network_and_never_this_service(measured: Measured) -> None:
    """Peers are compared by the median rate; a peer with another network is not compared."""
    measured.add(0, "convmlp", Kind.EAGER, load(99))
    measured.add(0, "fastapi", Kind.EAGER, load(20))
    measured.add(0, "mosec", Kind.EAGER, load(30))
    measured.add(0, "litserve", Kind.FASTEST, load(90))
    assert best_peer(measured.run, Kind.EAGER) == Who("mosec", Kind.EAGER)
    assert best_peer(measured.run, Kind.FP32) is None


def test_goals_are_held_against_the_better_arrangement(measured: Measured) -> None:
    """A peer's better arrangement, as advised or tuned, is the one to beat; as-advised peers have rows of their own."""
    measured.add(0, "convmlp", Kind.FASTEST, load(90))
    measured.add(0, "mosec", Kind.EAGER, load(30))
    measured.add(0, "fastapi", Kind.EAGER, load(45), arrangement=Arrangement.AS_ADVISED)
    measured.add(0, "mosec", Kind.FASTEST, load(60))
    measured.add(0, "mosec", Kind.FASTEST, load(50), arrangement=Arrangement.AS_ADVISED)
    rows = {name: (value.values, goal) for name, value, goal in comparisons(measured.run)}
    assert rows["fastest, over the best peer with eager (fastapi, as-advised)"] == ((2.0,), "≥ 3")
    assert rows["fastest, over the best peer with fastest (mosec, tuned)"] == ((1.5,), "≥ 1.3")
    assert rows["fastest, over the best as-advised peer with eager (fastapi)"] == ((2.0,), "")
    assert rows["fastest, over the best as-advised peer with fastest (mosec)"] == ((1.8,), "")


def test_the_best_of_the_mean_limit_was_tried_both_times() -> None:
    """One measurement may stop past its best; the mean is of the arrangements that both have."""
    alone = [
        NetworkAlone(MODEL, Kind.FASTEST, per_second, 8.0)
        for per_second in ({"2 x 1": 80.0, "2 x 2": 100.0, "2 x 4": 130.0}, {"2 x 1": 60.0, "2 x 2": 80.0})
    ]
    first, second = (
        Limit([one], [DecodingAlone(MODEL, rate, 2.0)]) for one, rate in zip(alone, (300.0, 420.0), strict=True)
    )
    mean = mean_limit(first, second)
    assert mean.networks == [NetworkAlone(MODEL, Kind.FASTEST, {"2 x 1": 70.0, "2 x 2": 90.0}, 8.0)]
    assert mean.per_second(MODEL, Kind.FASTEST) == pytest.approx(1 / (1 / 90 + 1 / 360))


def test_detection_and_segmentation_are_held_against_their_networks(measured: Measured) -> None:
    """The goal is for the paper's sizes; for the embedded models, where decoding dominates, the ratio has no goal."""
    run = measured.run
    measured.add(0, "convmlp", "large", load(190, 8, task="detect"), load(100, 8, task="segment"))
    measured.add(0, "convmlp", Kind.FASTEST, load(150, task="detect"))
    rows = {name: (value.values, goal) for name, value, goal in comparisons(run) if value.values}
    assert rows["detect (retinanet_bench_s), over the rate of its network alone"] == ((0.95,), "≥ 0.90")
    assert rows["segment (sem_fpn_bench_s), over the rate of its network alone"] == ((0.5,), "≥ 0.90")
    assert rows["detect (convmlp_pets_heads), over the rate of its network alone"] == ((0.75,), "")
    assert "| retinanet_bench_s | detect | 8 | 190.0 | 10 |" in report(run)


def test_limits_of_a_round_are_put_together(measured: Measured) -> None:
    """Whichever of its visits comes first, a round has one limit, of all networks that were measured in it."""
    run = measured.run
    alone = NetworkAlone("large_one", Kind.FASTEST, {"2 x 1": 2.0}, 500.0)
    for number in (1, 2):
        run.add_limit(number, Limit([alone], [DecodingAlone("large_one", 200.0, 8.0)]))
    assert run.limits[1].network(MODEL, Kind.FASTEST).best_per_second == 100
    assert [one.network("large_one", Kind.FASTEST) for one in run.limits_of("large_one")] == [alone, alone]
    assert len(run.limits_of(MODEL)) == 2


def test_the_report_has_medians_and_what_is_missing(measured: Measured) -> None:
    """The report has medians with minimum and maximum, and lists the peers that were unavailable or failed."""
    run = measured.run
    for number, answers in enumerate((60.0, 70.0)):
        measured.add(number, "convmlp", Kind.FASTEST, load(answers), load(40, 1), load(50, 0.8, "open"))
    measured.add(0, "mosec", Kind.EAGER, load(30, failed={"wrong answer": 2}))
    measured.add(0, "mosec", Kind.EAGER, load(20), arrangement=Arrangement.AS_ADVISED)
    run.visits.append(Visit(0, "fastapi", Kind.EAGER, 1, Arrangement.TUNED, 0.0, [], 0.0, trouble="it ended"))
    run.unavailable["triton"] = "triton: no such package"
    text = report(run)
    assert "| **convmlp** | fastest | its own | 40.0 [40.0 to 40.0] | 65.0 [60.0 to 70.0] | - |" in text
    assert "| mosec | eager | tuned | - | 30.0 | - |" in text
    assert "| mosec | eager | as-advised | - | 20.0 | - |" in text
    assert "triton is missing: triton: no such package" in text
    assert "fastapi/eager, round 1: it ended" in text
    assert "mosec/eager, round 1, failures: 2 x wrong answer" in text
    assert "| fastest, over the best peer with eager (mosec, tuned) | 2.00 | ≥ 3 |" in text


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
