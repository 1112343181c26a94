"""Which job is next: deadlines, and shares of the device."""

from __future__ import annotations

import pytest

from tests.service.worker.dispatcher_bench import dispatcher_bench


async def test_the_earliest_deadline_is_answered_first() -> None:
    """Jobs of one model run by deadline, not by arrival."""
    async with dispatcher_bench(batch=1) as it:
        await it.hold()
        for number, budget_s in ((1, 30.0), (2, 10.0), (3, 20.0)):
            it.submit(number, budget_s=budget_s)
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 4)
        assert list(it.results) == [0, 2, 3, 1]


async def test_a_flooded_model_leaves_the_other_its_share() -> None:
    """Sixty images of one model wait: those of the other are admitted, and run in turn with them."""
    async with dispatcher_bench(batch=4, models=["flood", "other"]) as it:
        for model in ("flood", "other"):
            await it.learn(1.0, model)
        it.runner.unblocked.clear()
        for number in range(60):
            it.submit(number, model="flood", budget_s=1000.0)
        await it.until(lambda: len(it.runner.batches) == 1)
        for number in range(60, 64):
            it.submit(number, model="other", budget_s=20.0)
        it.each_takes(1.0)
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 64 + 4)
        assert it.runner.batches[:4] == [("flood", 4), ("other", 4), ("flood", 4), ("flood", 4)]
        assert max(it.results[number].queue_s for number in range(60, 64)) <= 8.0


async def test_a_weight_of_two_gives_twice_the_time() -> None:
    """Where two models want more than the device can do, the one of weight 2 gets two thirds of it."""
    async with dispatcher_bench(batch=2, models=["a", "b"], weights={"a": 2.0}) as it:
        for model in ("a", "b"):
            await it.learn(1.0, model)
        it.runner.unblocked.clear()
        for number in range(60):
            it.submit(number, model="ab"[number % 2], budget_s=1000.0)
        it.each_takes(1.0)
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 60 + 4)
        had = [model for model, _ in it.runner.batches[:21]]
        assert had.count("a") == pytest.approx(14, abs=1)
