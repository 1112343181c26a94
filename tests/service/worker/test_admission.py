"""Which jobs are refused when they arrive, and which are removed from the queue."""

from __future__ import annotations

import pytest

from model.types import ClassifyOutput
from service.errors import DeadlineExceeded, Overloaded
from service.wire.messages import WaitEstimate
from service.worker.admission import MARGIN
from service.worker.types import Shape
from tests.service.worker.dispatcher_bench import FIRST, SIDE, DispatcherBench, HeldBatches, dispatcher_bench


@pytest.mark.settings(max_images=3)
async def test_the_queue_is_bounded(bench: DispatcherBench) -> None:
    """Beyond the bound a job is refused at once with a Retry-After; the admitted jobs are answered."""
    bench.runner.unblocked.clear()
    bench.submit(0)
    await bench.until(lambda: len(bench.runner.batches) == 1)
    for number in range(1, 5):
        bench.submit(number)
    assert isinstance(bench.error(4), Overloaded)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 5)
    assert [bench.label(number) for number in range(4)] == [0, 0, 0, 0]


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(bench: DispatcherBench) -> None:
    """A job whose answer is expected after its deadline is refused. The first batch of a shape sets no expectation."""
    for number, batch_s in enumerate((100.0, 4.0)):
        bench.runner.unblocked.clear()
        bench.submit(number, budget_s=1000.0)
        await bench.until(lambda: len(bench.runner.batches) == len(bench.results) + 1)
        bench.clock.now_s += batch_s
        bench.runner.unblocked.set()
        await bench.until(lambda: len(bench.runner.batches) == len(bench.results))
    bench.runner.unblocked.clear()
    bench.submit(2)
    await bench.until(lambda: len(bench.runner.batches) == 3)
    bench.submit(3, budget_s=3.0)
    error = bench.error(3)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == pytest.approx(4.0)


@pytest.mark.settings(batch=1)
async def test_jobs_that_are_due_later_do_not_count(bench: DispatcherBench) -> None:
    """Only jobs with earlier deadlines count as the wait of a new job."""
    await bench.learn(1.0)
    bench.runner.unblocked.clear()
    for number in range(10):
        bench.submit(number, budget_s=1000.0)
    await bench.until(lambda: len(bench.runner.batches) == 1)
    bench.submit(10, budget_s=4.0)
    bench.submit(11, budget_s=4.0)
    bench.submit(12, budget_s=2.2)
    bench.submit(13, budget_s=5.0)
    assert isinstance(bench.error(13), Overloaded)
    bench.each_takes(1.0)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 14 + 2)
    assert [number for number in bench.results if number < 10**6][:5] == [13, 0, 12, 10, 11]
    assert all(bench.label(number) == 0 for number in range(13))


async def test_an_idle_device_tries_every_job(bench: DispatcherBench) -> None:
    """Where nothing waits, a job runs though it is expected to be late, so that a wrong estimate is corrected."""
    await bench.learn(10.0)
    bench.submit(0, budget_s=1.0)
    await bench.until(lambda: len(bench.results) == 3)
    assert bench.label(0) == 0


async def test_an_expired_job_never_runs(bench: DispatcherBench) -> None:
    """A job whose deadline passes in the queue gets DeadlineExceeded and does not run; its neighbours do."""
    bench.runner.unblocked.clear()
    bench.submit(0)
    await bench.until(lambda: len(bench.runner.batches) == 1)
    bench.submit(1, budget_s=1.0)
    bench.submit(2, budget_s=9.0)
    bench.clock.now_s += 2.0
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 3)
    assert isinstance(bench.error(1), DeadlineExceeded)
    assert [images for _, images in bench.runner.batches] == [1, 1]


@pytest.mark.settings(batch=1)
async def test_a_job_that_cannot_be_in_time_any_more_does_not_run(bench: DispatcherBench) -> None:
    """Jobs that the device cannot answer in time any more are refused when a lane is free, and do not run."""
    await bench.learn(1.0)
    bench.runner.unblocked.clear()
    bench.submit(0)
    await bench.until(lambda: len(bench.runner.batches) == 1)
    for number, budget_s in ((1, 4.0), (2, 6.0), (3, 20.0)):
        bench.submit(number, budget_s=budget_s)
    bench.clock.now_s += 5.5  # the device took much longer than ever
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 4 + 2)
    assert isinstance(bench.error(1), DeadlineExceeded)
    assert isinstance(bench.error(2), Overloaded)
    assert (bench.label(0), bench.label(3)) == (0, 0)
    assert bench.runner.batches == [(FIRST, 1)] * 2


@pytest.mark.settings(batch=4, max_images=500)
async def test_under_overload_every_job_that_runs_is_in_time(bench: DispatcherBench) -> None:
    """At twice the device's capacity no batch is wasted, and a refused job is refused when it arrives."""
    await bench.learn(0.1)
    held = HeldBatches(bench)
    for turn in range(60):
        for number in range(8):
            bench.submit(8 * turn + number, budget_s=5.0)
        await bench.until(lambda: len(held) == turn + 1)  # noqa: B023
        bench.clock.now_s += 0.1 * bench.runner.batches[-1][1]
        held.release(turn)
        await bench.until(lambda: len(held) == turn + 2)  # noqa: B023
    while len(bench.results) < 8 * 60 + 2:
        bench.clock.now_s += 0.1 * bench.runner.batches[-1][1]
        held.release(len(held) - 1)
        ran = len(held)
        await bench.until(lambda: len(held) > ran or len(bench.results) == 8 * 60 + 2)  # noqa: B023
    results = [bench.results[number] for number in range(8 * 60)]
    answered = [done for done in results if isinstance(done.result, ClassifyOutput)]
    refused = [done for done in results if isinstance(done.result, Overloaded)]
    assert all(done.queue_s + done.infer_s <= 5.0 for done in answered)
    assert all(not done.queue_s for done in refused)
    assert len(answered) + len(refused) == len(results)
    assert len(answered) == sum(images for _, images in bench.runner.batches)  # nothing ran in vain
    assert len(answered) >= 4 * 60  # and the device was never idle
    assert len(refused) >= 0.4 * len(results)


async def test_a_large_label_map_is_refused_where_a_small_one_is_not() -> None:
    """Two segmentations of one network input take as long as their pictures' pixels need; each is judged by its own."""
    async with dispatcher_bench(batch=1) as it:
        await it.learn(1.0, output_pixels=1000)
        await it.learn(10.0, output_pixels=10_000)
        await it.hold(0, output_pixels=1000)
        it.submit(1, budget_s=8.0, output_pixels=10_000)
        it.submit(2, budget_s=8.0, output_pixels=1000)
        it.submit(3, budget_s=25.0, output_pixels=10_000)
        await it.settle()
        assert [number for number in it.results if number < 10**6] == [1]
        assert isinstance(it.error(1), Overloaded)


async def test_the_wait_estimate_is_what_admission_applies() -> None:
    """A job that is due just before its estimate is refused, one that is due just after it is admitted. Each admitted
    job delays the next by `image_s`."""
    shape = Shape(FIRST, FIRST, SIDE, SIDE)
    async with dispatcher_bench(batch=1) as it:
        await it.learn(1.0)
        assert it.dispatcher.admission.wait_estimate(shape, 6.0) == WaitEstimate(1.0, MARGIN)
        await it.hold(0)
        for number in range(1, 4):
            it.submit(number, budget_s=5.0)
        assert it.dispatcher.admission.wait_estimate(shape, 3.0).answered_s == pytest.approx(MARGIN + 1.0)
        assert it.dispatcher.admission.wait_estimate(shape, 6.0).answered_s == pytest.approx(4 * MARGIN + 1.0)
        it.clock.now_s += 0.5
        forecast_s = it.dispatcher.admission.wait_estimate(shape, 6.0).answered_s
        assert forecast_s == pytest.approx(3.5 * MARGIN + 1.0)
        it.submit(4, budget_s=forecast_s - 0.01)
        assert isinstance(it.error(4), Overloaded)
        it.submit(5, budget_s=forecast_s + 0.01)
        assert 5 not in it.results
        assert it.dispatcher.admission.wait_estimate(shape, 6.0).answered_s == pytest.approx(forecast_s + MARGIN)
        it.runner.unblocked.set()


async def test_a_batch_on_several_lanes_sets_no_expectation() -> None:
    """The time of an image on several lanes is not the time that it takes on one lane, where all lanes are busy."""
    shape = Shape(FIRST, FIRST, SIDE, SIDE)
    async with dispatcher_bench(lanes=2) as it:
        await it.learn(5.0)
        assert it.dispatcher.admission.wait_estimate(shape, 6.0) == WaitEstimate(0.0, 0.0)
