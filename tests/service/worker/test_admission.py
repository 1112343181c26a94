"""Which jobs are refused when they arrive, and which are removed from the queue."""

from __future__ import annotations

import pytest

from model.types import ClassifyOutput
from service.errors import DeadlineExceeded, Overloaded
from service.wire.messages import WaitEstimate
from service.worker.admission import MARGIN
from service.worker.types import Shape
from tests.service.worker.dispatcher_bench import FIRST, SIDE, HeldBatches, dispatcher_bench


async def test_the_queue_is_bounded() -> None:
    """Beyond the bound a job is refused at once with a Retry-After; the admitted jobs are answered."""
    async with dispatcher_bench(max_images=3) as it:
        it.runner.unblocked.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        for number in range(1, 5):
            it.submit(number)
        assert isinstance(it.error(4), Overloaded)
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 5)
        assert [it.label(number) for number in range(4)] == [0, 0, 0, 0]


async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """A job whose answer is expected after its deadline is refused. The first batch of a shape sets no expectation."""
    async with dispatcher_bench() as it:
        for number, batch_s in enumerate((100.0, 4.0)):
            it.runner.unblocked.clear()
            it.submit(number, budget_s=1000.0)
            await it.until(lambda: len(it.runner.batches) == len(it.results) + 1)
            it.clock.now_s += batch_s
            it.runner.unblocked.set()
            await it.until(lambda: len(it.runner.batches) == len(it.results))
        it.runner.unblocked.clear()
        it.submit(2)
        await it.until(lambda: len(it.runner.batches) == 3)
        it.submit(3, budget_s=3.0)
        error = it.error(3)
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == pytest.approx(4.0)


async def test_jobs_that_are_due_later_do_not_count() -> None:
    """Only jobs with earlier deadlines count as the wait of a new job."""
    async with dispatcher_bench(batch=1) as it:
        await it.learn(1.0)
        it.runner.unblocked.clear()
        for number in range(10):
            it.submit(number, budget_s=1000.0)
        await it.until(lambda: len(it.runner.batches) == 1)
        it.submit(10, budget_s=4.0)
        it.submit(11, budget_s=4.0)
        it.submit(12, budget_s=2.2)
        it.submit(13, budget_s=5.0)
        assert isinstance(it.error(13), Overloaded)
        it.each_takes(1.0)
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 14 + 2)
        assert [number for number in it.results if number < 10**6][:5] == [13, 0, 12, 10, 11]
        assert all(it.label(number) == 0 for number in range(13))


async def test_an_idle_device_tries_every_job() -> None:
    """Where nothing waits, a job runs though it is expected to be late, so that a wrong estimate is corrected."""
    async with dispatcher_bench() as it:
        await it.learn(10.0)
        it.submit(0, budget_s=1.0)
        await it.until(lambda: len(it.results) == 3)
        assert it.label(0) == 0


async def test_an_expired_job_never_runs() -> None:
    """A job whose deadline passes in the queue gets DeadlineExceeded and does not run; its neighbours do."""
    async with dispatcher_bench() as it:
        it.runner.unblocked.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        it.submit(1, budget_s=1.0)
        it.submit(2, budget_s=9.0)
        it.clock.now_s += 2.0
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 3)
        assert isinstance(it.error(1), DeadlineExceeded)
        assert [images for _, images in it.runner.batches] == [1, 1]


async def test_a_job_that_cannot_be_in_time_any_more_does_not_run() -> None:
    """Jobs that the device cannot answer in time any more are refused when a lane is free, and do not run."""
    async with dispatcher_bench(batch=1) as it:
        await it.learn(1.0)
        it.runner.unblocked.clear()
        it.submit(0)
        await it.until(lambda: len(it.runner.batches) == 1)
        for number, budget_s in ((1, 4.0), (2, 6.0), (3, 20.0)):
            it.submit(number, budget_s=budget_s)
        it.clock.now_s += 5.5  # the device took much longer than ever
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 4 + 2)
        assert isinstance(it.error(1), DeadlineExceeded)
        assert isinstance(it.error(2), Overloaded)
        assert (it.label(0), it.label(3)) == (0, 0)
        assert it.runner.batches == [(FIRST, 1)] * 2


async def test_under_overload_every_job_that_runs_is_in_time() -> None:
    """At twice the device's capacity no batch is wasted, and a refused job is refused when it arrives."""
    async with dispatcher_bench(batch=4, max_images=500) as it:
        await it.learn(0.1)
        held = HeldBatches(it)
        for turn in range(60):
            for number in range(8):
                it.submit(8 * turn + number, budget_s=5.0)
            await it.until(lambda: len(held) == turn + 1)  # noqa: B023
            it.clock.now_s += 0.1 * it.runner.batches[-1][1]
            held.release(turn)
            await it.until(lambda: len(held) == turn + 2)  # noqa: B023
        while len(it.results) < 8 * 60 + 2:
            it.clock.now_s += 0.1 * it.runner.batches[-1][1]
            held.release(len(held) - 1)
            ran = len(held)
            await it.until(lambda: len(held) > ran or len(it.results) == 8 * 60 + 2)  # noqa: B023
        results = [it.results[number] for number in range(8 * 60)]
        answered = [done for done in results if isinstance(done.result, ClassifyOutput)]
        refused = [done for done in results if isinstance(done.result, Overloaded)]
        assert all(done.queue_s + done.infer_s <= 5.0 for done in answered)
        assert all(not done.queue_s for done in refused)
        assert len(answered) + len(refused) == len(results)
        assert len(answered) == sum(images for _, images in it.runner.batches)  # nothing ran in vain
        assert len(answered) >= 4 * 60  # and the device was never idle
        assert len(refused) >= 0.4 * len(results)


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
