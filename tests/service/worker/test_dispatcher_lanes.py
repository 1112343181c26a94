"""A device that runs several batches at once."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from structlog.testing import capture_logs

from service.errors import Internal, Overloaded
from tests.service.worker.dispatcher_bench import FIRST, DispatcherBench, HeldBatches, dispatcher_bench


@pytest.mark.settings(lanes=4)
async def test_a_lone_job_gets_all_lanes(bench: DispatcherBench) -> None:
    """A lone job takes the whole device; jobs that arrive meanwhile wait, and then share it."""
    held = HeldBatches(bench)
    bench.submit(0)
    await bench.until(lambda: len(held) == 1)
    bench.submit(1)
    bench.submit(2)
    held.release(0)
    await bench.until(lambda: len(held) == 3)
    assert bench.runner.shares == [4, 2, 2]
    held.release_all()
    await bench.until(lambda: len(bench.results) == 3)


@pytest.mark.settings(lanes=4)
async def test_a_lone_job_leaves_lanes_free_on_a_busy_device(bench: DispatcherBench) -> None:
    """Where jobs lately arrived while others ran, a lone job gets a part of the lanes; after a quiet time all."""
    held = HeldBatches(bench)
    for number in range(8):  # each of them comes while the one before bench runs
        bench.clock.now_s += 0.5
        bench.submit(number)
        if number:
            held.release(number - 1)
        await bench.until(lambda: len(held) == number + 1)  # noqa: B023
    assert bench.runner.shares[0] == 4
    assert bench.runner.shares[-1] < 4
    held.release_all()
    await bench.until(lambda: len(bench.results) == 8)
    bench.clock.now_s += 60.0
    bench.submit(8)
    await bench.until(lambda: len(held) == 9)
    assert bench.runner.shares[-1] == 4
    held.release_all()
    await bench.until(lambda: len(bench.results) == 9)


@pytest.mark.settings(lanes=2)
async def test_jobs_are_left_to_a_lane_that_is_free_soon(bench: DispatcherBench) -> None:
    """Four jobs wait, one lane is free and the other nearly so: each takes two."""
    await bench.trial(1.0)
    held = HeldBatches(bench)
    for number in range(2):
        bench.submit(number)
    await bench.until(lambda: len(held) == 2)
    for number in range(2, 6):
        bench.submit(number)
    bench.clock.now_s += 0.9
    held.release(0)
    await bench.until(lambda: len(held) == 3)
    assert bench.runner.batches[2:] == [(FIRST, 2)]
    held.release_all()
    await bench.until(lambda: len(held) == 4)
    held.release_all()
    await bench.until(lambda: len(bench.results) == 6)
    assert bench.runner.batches[2:] == [(FIRST, 2)] * 2


@pytest.mark.settings(lanes=2, batch=3)
async def test_a_deep_queue_gives_each_lane_a_batch(bench: DispatcherBench) -> None:
    """With enough jobs each lane runs batches of the best size by itself, and takes the next one when it is free."""
    held = HeldBatches(bench)
    for number in range(9):
        bench.submit(number, level=number)
    await bench.until(lambda: len(held) == 2)
    assert bench.runner.batches == [(FIRST, 3)] * 2
    held.release(1)
    await bench.until(lambda: len(held) == 3)
    assert sorted(bench.results) in ([0, 1, 2], [3, 4, 5])  # the other batch runs still
    held.release(0, 2)
    await bench.until(lambda: len(bench.results) == 9)
    assert bench.runner.shares == [1] * 3
    assert [bench.label(number) for number in range(9)] == list(range(9))
    assert {done.batch_images for done in bench.results.values()} == {3}


@pytest.mark.settings(lanes=2)
async def test_few_jobs_are_spread_over_the_lanes(bench: DispatcherBench) -> None:
    """Three images on two lanes: both lanes work."""
    for number in range(3):
        bench.submit(number)
    await bench.until(lambda: len(bench.results) == 3)
    # Two threads: either batch may begin first.
    assert (sorted(bench.runner.batches), bench.runner.shares) == ([(FIRST, 1), (FIRST, 2)], [1, 1])


@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
async def test_no_more_lanes_are_used_than_there_are(lanes: int) -> None:
    """Whatever arrives and fails, the runner's lanes suffice; the runner counts them."""
    with capture_logs():  # to draw hundreds of traces takes minutes
        await _hail(lanes)


async def _hail(lanes: int) -> None:
    async with dispatcher_bench(max_images=500, batch=4, lanes=lanes, models=["a", "b"]) as it:
        it.runner.poison = 13
        it.runner.memory_images = 3
        draw = np.random.default_rng(lanes)
        poisoned = set(draw.choice(300, 15, replace=False).tolist())
        for number in range(300):
            it.submit(number, level=13 if number in poisoned else 7, model="ab"[draw.integers(2)])
            if draw.random() < 0.2:
                await asyncio.sleep(0)
        await it.until(lambda: len(it.results) == 300)
        assert max(it.runner.taken_at_once) <= lanes
        failed = {number for number, done in it.results.items() if isinstance(done.result, Internal)}
        assert failed == poisoned
        assert all(it.label(number) == 7 for number in it.results.keys() - poisoned)


async def holds_all_lanes(bench: DispatcherBench, long_s: float, short_s: float) -> HeldBatches:
    """Two long jobs hold the lanes; one of their model waits, and one short job of another."""
    await bench.trial(long_s, "long")
    await bench.trial(short_s, "short")
    held = HeldBatches(bench)
    for number in range(2):
        bench.submit(number, model="long")
    await bench.until(lambda: len(held) == 2)
    bench.submit(2, model="long")
    bench.submit(3, model="short")
    await bench.settle()
    return held


@pytest.mark.settings(lanes=2, models=["long", "short"], can_overlap=True)
async def test_a_short_job_does_not_wait_for_long_batches(bench: DispatcherBench) -> None:
    """Where long batches hold all lanes of a CPU, a short job runs beside them at once, one at a time."""
    held = await holds_all_lanes(bench, 1.0, 0.01)
    await bench.until(lambda: len(held) == 3)
    assert (bench.runner.batches[2], bench.runner.shares[2]) == (("short", 1), 1)
    bench.submit(4, model="short", budget_s=0.5)
    await bench.settle()
    assert len(held) == 3
    held.release(2)
    await bench.until(lambda: len(held) == 4)
    assert list(bench.results) == [3]
    assert bench.runner.batches[3] == ("short", 1)
    held.release(3)
    await bench.until(lambda: 4 in bench.results)
    held.release(0, 1)
    await bench.until(lambda: len(held) == 5)
    held.release_all()
    await bench.until(lambda: len(bench.results) == 5)


@pytest.mark.settings(models=["long", "short"], can_overlap=True)
async def test_a_batch_that_overlaps_runs_alone_where_memory_is_short(bench: DispatcherBench) -> None:
    """A job that found no memory beside a long batch runs again once the device is free, also on the only lane."""
    await bench.trial(1.0, "long")
    await bench.trial(0.01, "short")
    held = HeldBatches(bench)
    bench.submit(0, model="long")
    await bench.until(lambda: len(held) == 1)
    bench.runner.memory_images = 0
    bench.submit(1, model="short")
    await bench.until(lambda: len(held) == 2)
    held.release(1)
    await bench.until(lambda: bench.dispatcher.executor.can_overlap)
    await bench.settle()
    assert not bench.results
    bench.runner.memory_images = None
    held.release(0)
    await bench.until(lambda: len(held) == 3)
    held.release(2)
    await bench.until(lambda: len(bench.results) == 2)
    assert (bench.label(0), bench.label(1)) == (0, 0)


@pytest.mark.parametrize(
    ("can_overlap", "long_s", "short_s"),
    [(False, 1.0, 0.01), (True, 1.0, 0.5), (True, 0.1, 0.01)],
    ids=["not on this device", "not much shorter", "the end is near"],
)
async def test_a_job_waits_where_it_gains_nothing_beside_others(
    can_overlap: bool, long_s: float, short_s: float
) -> None:
    """No batch overlaps others on a GPU, nor where it is not short, nor where a lane is free soon."""
    async with dispatcher_bench(lanes=2, models=["long", "short"], can_overlap=can_overlap) as bench:
        held = await holds_all_lanes(bench, long_s, short_s)
        assert len(held) == 2
        while len(bench.results) < 4:
            held.release_all()
            await asyncio.sleep(0.001)


@pytest.mark.settings(lanes=2, models=["long", "short"], can_overlap=True)
async def test_a_short_deadline_is_kept_beside_long_batches(bench: DispatcherBench) -> None:
    """A short job that is due before the long batches end is admitted where it may overlap them, and a long one not."""
    held = await holds_all_lanes(bench, 10.0, 0.01)
    bench.submit(4, model="short", budget_s=0.5)
    bench.submit(5, model="long", budget_s=0.5)
    assert isinstance(bench.error(5), Overloaded)
    await bench.until(lambda: len(held) == 3)
    held.release(2)
    await bench.until(lambda: len(held) == 4)
    held.release(3)
    await bench.until(lambda: 4 in bench.results)
    assert bench.label(4) == 0
    while len(bench.results) < 6:
        held.release_all()
        await asyncio.sleep(0.001)


@pytest.mark.settings(lanes=2)
async def test_the_oldest_batch_is_watched(bench: DispatcherBench) -> None:
    """While one lane hangs and others answer, its time is the silence of the device."""
    held = HeldBatches(bench)
    bench.submit(0)
    bench.submit(1)
    await bench.until(lambda: len(held) == 2)
    bench.clock.now_s += 5.0
    held.release(1)
    await bench.until(lambda: len(bench.results) == 1)
    bench.clock.now_s += 2.0
    bench.submit(2)
    await bench.until(lambda: len(held) == 3)
    assert bench.dispatcher.executor.busy_s() == bench.dispatcher.executor.silent_s() == 7.0
    held.release(0)
    await bench.until(lambda: len(bench.results) == 2)
    assert bench.dispatcher.executor.busy_s() == 0.0
    held.release_all()
    await bench.until(lambda: len(bench.results) == 3)


@pytest.mark.settings(lanes=2)
async def test_the_wait_for_a_slot_includes_all_lanes(bench: DispatcherBench) -> None:
    """The wait for a slot ends after its last batch, on whichever lane."""
    held = HeldBatches(bench)
    bench.submit(0)
    bench.submit(1)
    await bench.until(lambda: len(held) == 2)
    finished = asyncio.create_task(bench.dispatcher.wait_until_done(FIRST))
    held.release(1)
    await bench.until(lambda: len(bench.results) == 1)
    await bench.settle()
    assert not finished.done()
    held.release(0)
    await asyncio.wait_for(finished, 60)


@pytest.mark.settings(lanes=2, batch=1)
async def test_the_drain_time_is_divided_by_the_lanes(bench: DispatcherBench) -> None:
    """Two lanes finish the waiting jobs in half the time; of a running batch only the rest counts."""
    await bench.trial(3.0)
    held = HeldBatches(bench)
    assert bench.dispatcher.admission.drain_s() == 0.0
    for number in range(4):
        bench.submit(number)
    assert bench.dispatcher.admission.drain_s() == pytest.approx(6.0)
    await bench.until(lambda: len(held) == 2)
    bench.clock.now_s += 2.0
    assert bench.dispatcher.admission.drain_s() == pytest.approx(4.0)
    while len(bench.results) < 4:
        held.release_all()
        await asyncio.sleep(0.001)
    busy_s = bench.registry.get_sample_value("convmlp_device_busy_seconds_total", {"model": FIRST})
    assert busy_s == pytest.approx(2.0)
