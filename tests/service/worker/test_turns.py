"""Which job is next: deadlines, and shares of the device."""

from __future__ import annotations

import pytest

from service.worker.queue import LEAD_S
from tests.service.worker.dispatcher_bench import DispatcherBench


@pytest.mark.settings(batch=1)
async def test_the_earliest_deadline_is_answered_first(bench: DispatcherBench) -> None:
    """Jobs of one model run by deadline, not by arrival."""
    await bench.hold()
    for number, budget_s in ((1, 30.0), (2, 10.0), (3, 20.0)):
        bench.submit(number, budget_s=budget_s)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 4)
    assert list(bench.results) == [0, 2, 3, 1]


@pytest.mark.settings(batch=4, models=["flood", "other"])
async def test_a_flooded_model_leaves_the_other_its_share(bench: DispatcherBench) -> None:
    """Sixty images of one model wait: those of the other are admitted, and run in turn with them."""
    for model in ("flood", "other"):
        await bench.learn(1.0, model)
    bench.runner.unblocked.clear()
    for number in range(60):
        bench.submit(number, model="flood", budget_s=1000.0)
    await bench.until(lambda: len(bench.runner.batches) == 1)
    for number in range(60, 64):
        bench.submit(number, model="other", budget_s=20.0)
    bench.each_takes(1.0)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 64 + 4)
    assert bench.runner.batches[:4] == [("flood", 4), ("other", 4), ("flood", 4), ("flood", 4)]
    assert max(bench.results[number].queue_s for number in range(60, 64)) <= 8.0


@pytest.mark.settings(batch=1, models=["a", "b"])
async def test_a_short_burst_runs_by_deadline_whatever_its_model(bench: DispatcherBench) -> None:
    """Jobs of two models run by deadline, while neither is more than the lead ahead of its share of the device."""
    for model in ("a", "b"):
        await bench.learn(LEAD_S / 10, model)
    await bench.hold(model="a")
    for number in range(1, 7):
        bench.submit(number, model="aaaabb"[number - 1], budget_s=20.0 + number)
    bench.each_takes(LEAD_S / 10)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 7 + 4)
    assert list(bench.results)[4:] == list(range(7))


@pytest.mark.settings(batch=2, models=["a", "b"], weights={"a": 2.0})
async def test_a_weight_of_two_gives_twice_the_time(bench: DispatcherBench) -> None:
    """Where two models want more than the device can do, the one of weight 2 gets two thirds of it."""
    for model in ("a", "b"):
        await bench.learn(1.0, model)
    bench.runner.unblocked.clear()
    for number in range(60):
        bench.submit(number, model="ab"[number % 2], budget_s=1000.0)
    bench.each_takes(1.0)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 60 + 4)
    had = [model for model, _ in bench.runner.batches[:21]]
    assert had.count("a") == pytest.approx(14, abs=1)
