"""The best size of batches, measured on devices whose curves are known."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from model.types import Task
from service.worker.batching import BatchSizeLimits
from service.worker.dispatcher import TRIAL_WAIT_S
from service.worker.model_registry import LoadedModel, new_model
from service.worker.state_folder import StateFolder
from service.worker.tuning import ROUNDS, RUNS, STABLE_ROUNDS, BestBatch, Tuner, best_of, should_continue
from tests.fakes import fake_bundle
from tests.service.worker.dispatcher_bench import FIRST, SIDE, DispatcherBench, HeldBatches, dispatcher_bench
from tests.service.worker.jobs import job, shape


def loaded(it: DispatcherBench) -> LoadedModel:
    """The model of the bench, in a slot of the same name; its reference picture is as large as the bench's jobs."""
    model = new_model(fake_bundle(Task.CLASSIFY))
    model.slot = FIRST
    assert model.reference.pixels.shape == (SIDE, SIDE, 3)
    assert FIRST in it.runner.slots
    return model


def has_curve(it: DispatcherBench, each_ms: Callable[[int], float]) -> None:
    """From now on a batch takes so many milliseconds for each of its images."""

    def takes(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
        it.clock.now_s += images * each_ms(images) / 1000

    it.runner.takes = takes


def tuner(it: DispatcherBench, most: int = 32, budget_s: float = 1000.0) -> Tuner:
    return Tuner(it.dispatcher, BatchSizeLimits(most, 10**9), clock=it.clock, budget_s=budget_s)


def sizes(it: DispatcherBench) -> list[int]:
    """The sizes that were timed, in their order."""
    return list(dict.fromkeys(images for _, images in it.runner.batches))


def a_cpu(images: int) -> float:
    """Falls a little, and rises where a batch leaves the caches."""
    return {1: 15.5, 2: 14.5, 4: 13.4, 8: 13.9}.get(images, 25.0)


@pytest.mark.parametrize(
    ("each_ms", "best", "tried"),
    [
        (a_cpu, 4, [1, 2, 4, 8, 16]),
        (lambda images: 1 + 100 / images, 32, [1, 2, 4, 8, 16, 32]),  # a GPU: the more the better
        (lambda images: 10.0, 1, [1, 2, 4, 8, 16, 32]),  # noqa: ARG005  (nothing is gained)
        (lambda images: 10.0 * images, 1, [1, 2]),
        (lambda images: 10.0 - 0.01 * images, 1, [1, 2, 4, 8, 16, 32]),  # not worth the wait
        (lambda images: {1: 10.0, 2: 10.9}.get(images, 8.0), 4, [1, 2, 4, 8, 16, 32]),  # a bump
        (lambda images: 10.0 - images.bit_length() * 0.25, 16, [1, 2, 4, 8, 16, 32]),  # small gains add up
        (lambda images: 10.0 + images.bit_length() * 0.3, 1, [1, 2, 4, 8]),  # it only gets slower
    ],
)
async def test_the_smallest_size_that_is_about_as_fast_as_the_fastest(
    bench: DispatcherBench, each_ms: Callable[[int], float], best: int, tried: list[int]
) -> None:
    """The choice follows the device's curve, which is measured as long as a larger batch may be faster."""
    has_curve(bench, each_ms)
    assert (await tuner(bench).tune(loaded(bench))).images == best
    assert sizes(bench) == tried
    assert set(bench.runner.shares) == {1}


@pytest.mark.settings(batch=1)
async def test_a_measurement_waits_for_jobs_but_not_for_ever(bench: DispatcherBench) -> None:
    """Jobs that wait run before a batch that only measures a model, until that has waited for `TRIAL_WAIT_S`."""
    await bench.hold()
    for number in range(1, 8):
        bench.submit(number)
    trial = asyncio.create_task(bench.dispatcher.time_batch(job(0, shape(SIDE, FIRST)), 5))
    await bench.settle()
    bench.each_takes(0.4 * TRIAL_WAIT_S)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 8)
    assert [images for _, images in bench.runner.batches] == [1, 1, 1, 5, 1, 1, 1, 1, 1]
    assert await trial == pytest.approx(5 * 0.4 * TRIAL_WAIT_S)


def test_a_curve_ends_where_batches_become_slower() -> None:
    """A size without a gain ends no curve: the fastest may be behind it. One that is much slower than the fastest does,
    and so do two in a row that are slower."""
    assert should_continue({})
    assert should_continue({1: 10.0})
    assert should_continue({1: 10.0, 2: 10.9})
    assert should_continue({1: 10.0, 2: 10.0, 4: 10.0, 8: 9.9})
    assert should_continue({1: 10.0, 2: 14.0})
    assert not should_continue({1: 10.0, 2: 15.1})
    assert not should_continue({1: 10.0, 2: 10.6, 4: 10.7})
    assert best_of({1: 10.0, 2: 9.8, 4: 9.75}) == 1
    assert best_of({1: 10.0, 2: 9.0, 4: 8.9}) == 2


@pytest.mark.parametrize(
    ("most", "tried"), [(320, [1, 2, 4, 8, 16, 32]), (319, [1, 2, 4, 8, 16]), (40, [1, 2, 4]), (0, [1])]
)
async def test_a_batch_that_would_take_too_much_memory_is_not_measured(
    bench: DispatcherBench, most: int, tried: list[int]
) -> None:
    """The memory of a size is estimated from the size before. A curve that ends there is whole: it is not measured
    again; and what the process occupied before does not count."""
    resident = 500

    def takes(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
        nonlocal resident
        bench.clock.now_s += 10 + images
        resident = max(resident, 500 + 10 * images)

    bench.runner.takes = takes
    limits, clock = BatchSizeLimits(32, 10**9), bench.clock
    made = Tuner(
        bench.dispatcher, limits, clock=clock, budget_s=10_000.0, resident_bytes=lambda: resident, max_bytes=most
    )
    best = await made.tune(loaded(bench))
    assert (sizes(bench), best.images, best.whole) == (tried, tried[-1], True)


@pytest.mark.settings(lanes=2)
async def test_sizes_are_timed_as_they_will_run(bench: DispatcherBench) -> None:
    """A batch on each lane, at once: where lanes share a cache, the best size is smaller than for one batch alone."""
    held = HeldBatches(bench)
    made = Tuner(bench.dispatcher, BatchSizeLimits(4, 10**9), clock=bench.clock, budget_s=1000.0, lanes=2)
    tuning = asyncio.create_task(made.tune(loaded(bench)))
    pairs = 0
    while not tuning.done():
        await bench.until(lambda: tuning.done() or len(held) == 2 * pairs + 2)  # noqa: B023
        pairs += 1
        held.release_all()
        await asyncio.sleep(0.001)
    ran = [images for _, images in bench.runner.batches]
    assert ran[::2] == ran[1::2]
    assert set(bench.runner.taken_at_once) == {1, 2}
    assert set(bench.runner.shares) == {1}


@pytest.mark.settings(lanes=4)
@pytest.mark.parametrize(
    ("alone_ms", "lanes"),
    [
        ({1: 16.5, 2: 21.6, 4: 30.0}, 1),  # lanes wait for each other longer than they compute
        ({1: 16.0, 2: 8.6, 4: 8.4}, 2),  # more than two gain nothing
        ({1: 16.0, 2: 9.0, 4: 5.0}, 4),
    ],
)
async def test_a_lone_request_gets_the_lanes_that_answer_it_soonest(
    bench: DispatcherBench, alone_ms: dict[int, float], lanes: int, tmp_path: Path
) -> None:
    """As measured, not assumed: the fewest that are about as fast. The next process has them from the state folder."""

    def takes(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
        bench.clock.now_s += alone_ms[lanes] / 1000 * images

    state = StateFolder(tmp_path)
    for again in (False, True):
        bench.runner.takes = takes if not again else None
        made = Tuner(
            *(bench.dispatcher, bench.limits, state, (), bench.clock, 1000.0),
            lanes=1,
            max_lanes=4,
        )
        assert (await made.tune(loaded(bench))).lanes == lanes
        ran = len(bench.runner.shares)
        bench.submit(again)
        await bench.until(lambda: len(bench.runner.shares) == ran + 1)  # noqa: B023
        assert bench.runner.shares[-1] == lanes
        # A picture of many times the pixels has more to share in each layer.
        bench.submit(10 + again, side=4 * SIDE)
        await bench.until(lambda: len(bench.runner.shares) == ran + 2)  # noqa: B023
        assert bench.runner.shares[-1] == 4


async def test_tuning_keeps_to_its_budget() -> None:
    """A slow model is timed for as many sizes as the budget allows, at least one."""
    for each_s, tried in ((0.05, [1, 2, 4]), (0.4, [1]), (3.0, [1])):
        async with dispatcher_bench() as it:
            has_curve(it, lambda images: 1000 * each_s * (0.9 + 0.1 / images))  # noqa: B023
            start_s = it.clock()
            await tuner(it, budget_s=1.0).tune(loaded(it))
            assert sizes(it) == tried
            assert it.clock() - start_s <= max(1.0, each_s)


async def test_an_idle_worker_has_time_for_what_was_cut_short(bench: DispatcherBench) -> None:
    """A model that is too slow for the time at its load is measured to the end afterwards, and so only once."""
    has_curve(bench, lambda images: 40 * (0.9 + 0.1 / images))
    made = tuner(bench, most=4, budget_s=1.0)
    assert not (await made.tune(loaded(bench))).whole
    again = await made.tune_again(loaded(bench), lambda: True)
    assert again is not None
    assert again.whole


async def test_a_request_ends_a_measurement_that_can_wait(bench: DispatcherBench) -> None:
    """A worker that is idle no longer runs no further trial, and what was used before stays."""
    has_curve(bench, lambda images: 40 * (0.1 + 0.9 / images))
    limits, model = BatchSizeLimits(4, 10**9), loaded(bench)
    made = Tuner(bench.dispatcher, limits, clock=bench.clock, budget_s=0.05)
    await made.tune(model)
    assert limits.max_images(shape(SIDE, FIRST)) == 1
    ran = len(bench.runner.batches)
    assert await made.tune_again(model, lambda: len(bench.runner.batches) < ran + 3) is None
    assert len(bench.runner.batches) == ran + 3
    assert limits.max_images(shape(SIDE, FIRST)) == 1


async def test_the_fastest_of_some_runs_counts_and_never_the_first(bench: DispatcherBench) -> None:
    """A run that allocates memory or is disturbed does not count against a size."""
    seen: list[int] = []

    def each_ms(images: int) -> float:
        seen.append(images)
        undisturbed = {1: 10.0, 2: 8.0}.get(images, 20.0)
        return 0.1 if seen.count(images) == 1 else undisturbed * (5.0 if draw.random() < 0.5 else 1.0)

    draw = random.Random(1)
    has_curve(bench, each_ms)
    assert (await tuner(bench).tune(loaded(bench))).images == 2
    assert 1 + RUNS + STABLE_ROUNDS <= seen.count(1) == seen.count(2) <= 1 + RUNS + ROUNDS


@pytest.mark.settings(batch=32, max_images=200)
async def test_the_best_size_holds_by_pixels_for_other_shapes(bench: DispatcherBench) -> None:
    """Where four images of the reference's size are best, one of four times the pixels is, and sixteen of a quarter."""
    has_curve(bench, a_cpu)
    await Tuner(bench.dispatcher, bench.limits, clock=bench.clock, budget_s=1000.0).tune(loaded(bench))
    bench.runner.batches.clear()
    held = HeldBatches(bench)
    for side, images in ((SIDE, 4), (2 * SIDE, 1), (SIDE // 2, 16)):
        ran, answered = len(held), len(bench.results)
        for number in range(20):
            bench.submit(1000 * side + number, side=side)
        await bench.until(lambda: len(held) == ran + 1)  # noqa: B023
        assert bench.runner.batches[-1] == (FIRST, images)
        while len(bench.results) < answered + 20:
            held.release_all()
            await asyncio.sleep(0.001)


async def test_a_batch_that_does_not_fit_ends_the_curve(bench: DispatcherBench) -> None:
    """Where the next size does not fit, the best of the others is used, and the model serves."""
    bench.runner.memory_images = 4
    has_curve(bench, lambda images: 100 / images)
    with capture_logs() as logs:
        assert (await tuner(bench).tune(loaded(bench))).images == 4
    assert [line["event"] for line in logs] == ["batch does not fit into memory", "best batch"]
    bench.submit(0, level=7)
    await bench.until(lambda: 0 in bench.results)
    assert bench.label(0) == 7


async def test_requests_run_between_trials(bench: DispatcherBench) -> None:
    """A job that arrives while a model is measured waits for one trial alone; so does an unload of the model."""
    held = HeldBatches(bench)
    model = loaded(bench)
    tuning = asyncio.create_task(tuner(bench).tune(model))
    await bench.until(lambda: len(held) == 1)
    finished = asyncio.create_task(bench.dispatcher.wait_until_done(FIRST))
    bench.submit(0)
    held.release(0)
    await bench.until(lambda: len(held) == 2)
    assert not finished.done()
    held.release(1)
    await bench.until(lambda: len(bench.results) == 1)
    model.retired = True  # its slot is wanted: no more trials
    while not tuning.done():
        held.release_all()
        await asyncio.sleep(0.001)
    await asyncio.wait_for(finished, 60)
    assert len(held) < 2 + 2 * (1 + RUNS)


async def test_what_was_measured_is_used_by_the_next_process(bench: DispatcherBench, tmp_path: Path) -> None:
    """The next start takes size and speed from the state folder and runs no batch, unless it shall measure again.
    Another processor, precision, limit or version of the model has a measurement of its own."""
    has_curve(bench, a_cpu)
    state = StateFolder(tmp_path)

    def tuner_of(identity: tuple[str, ...] = ("a processor",), most: int = 32) -> Tuner:
        return Tuner(bench.dispatcher, BatchSizeLimits(most, 10**9), state, identity, bench.clock, 1000.0)

    model = loaded(bench)
    measured = await tuner_of().tune(model)
    assert (measured.images, measured.whole) == (4, True)
    has_curve(bench, lambda images: 100.0)  # noqa: ARG005
    ran = len(bench.runner.batches)
    assert await tuner_of().tune(model) == measured
    assert len(bench.runner.batches) == ran
    assert (await tuner_of(("another processor",)).tune(model)).images == 1
    assert (await tuner_of(most=16).tune(model)).images == 1
    model.precision = "bf16"
    assert (await tuner_of().tune(model)).images == 1
    model.precision, model.version = "", "another"
    assert (await tuner_of().tune(model)).images == 1
    again = await tuner_of().tune_again(loaded(bench), lambda: True)
    assert again is not None
    assert again.images == 1
    assert (await tuner_of().tune(loaded(bench))).images == 1


@pytest.mark.parametrize(("images", "seconds"), [(0, 1.0), (64, 1.0), (4, 0.0), (4, -1.0)])
async def test_a_kept_size_that_cannot_be_is_measured_again(
    bench: DispatcherBench, tmp_path: Path, images: int, seconds: float
) -> None:
    """A kept measurement beyond the configured sizes, or without a time, is as good as none."""
    has_curve(bench, a_cpu)
    state, model = StateFolder(tmp_path), loaded(bench)
    state.write("batch", (model.version, "", "at most 32 images"), BestBatch(images, seconds, whole=True))
    tuner = Tuner(bench.dispatcher, BatchSizeLimits(32, 10**9), state, (), bench.clock, 1000.0)
    assert (await tuner.tune(model)).images == 4


async def test_a_measurement_that_ended_early_is_not_whole(bench: DispatcherBench) -> None:
    """Where the time is up before the curve ends, the result is not whole; the worker measures once more later."""
    has_curve(bench, lambda images: 1 + 100 / images)
    cut = await tuner(bench, budget_s=0.9).tune(loaded(bench))
    assert not cut.whole
    assert (await tuner(bench).tune(loaded(bench))).whole


@pytest.mark.parametrize(("load", "whole"), [(0.9, True), (1.1, False)])
async def test_what_was_measured_on_a_busy_machine_is_measured_again(
    bench: DispatcherBench, load: float, whole: bool
) -> None:
    """It is used meanwhile, and is not whole: other work may have made a size or a number of lanes slow."""
    has_curve(bench, a_cpu)
    made = Tuner(
        bench.dispatcher,
        BatchSizeLimits(32, 10**9),
        clock=bench.clock,
        budget_s=1000.0,
        machine_load=lambda: load,
    )
    best = await made.tune(loaded(bench))
    assert (best.images, best.whole) == (4, whole)


@pytest.mark.parametrize(("load", "images"), [(1.1, 1), (0.9, 4)])
async def test_a_start_does_not_rely_on_what_a_busy_machine_measured(
    bench: DispatcherBench, tmp_path: Path, load: float, images: int
) -> None:
    """It is used where the machine is still busy; else the start measures, because requests may leave no other time."""
    loads = [load, 1.1]
    state, model = StateFolder(tmp_path), loaded(bench)

    def made() -> Tuner:
        limits = BatchSizeLimits(32, 10**9)
        return Tuner(bench.dispatcher, limits, state, (), bench.clock, 1000.0, machine_load=lambda: loads[-1])

    has_curve(bench, lambda images: 100.0)  # noqa: ARG005
    assert (await made().tune(model)).busy
    loads.pop()
    has_curve(bench, a_cpu)
    best = await made().tune(model)
    assert (best.images, best.busy) == (images, load > 1)
