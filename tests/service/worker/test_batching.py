"""The batching policy alone: how waiting jobs are spread over the free lanes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.types import ModelInput
from service.worker.batching import BatchPlan, make_batch, plan_batch
from service.worker.runner import OutOfDeviceMemory
from service.worker.types import RunningBatch
from tests.service.worker.jobs import job

LANES, WAITING, LIMIT = st.integers(1, 24), st.integers(1, 300), st.integers(1, 40)


def plan(
    free: int, waiting: int, others: int, limit: int, free_after_s: list[float] | None = None, max_lanes: int = 99
) -> BatchPlan:
    """The next batch where an image takes 1 s of a lane; the other lanes are busy for `free_after_s` from now on."""
    running = [RunningBatch((), 1, expected_s=seconds, started_s=5.0) for seconds in free_after_s or []]
    return plan_batch(free, waiting, others, limit, max_lanes, running, image_s=1.0, now_s=5.0)


def spread(free: int, waiting: list[int], limit: int) -> list[BatchPlan]:
    """The batches that start at once. `waiting`: how many images wait of each shape, in the order of their turns."""
    started: list[BatchPlan] = []
    waiting = waiting.copy()
    while free and any(waiting):
        turn = next(at for at, images in enumerate(waiting) if images)
        batch = plan(free, waiting[turn], sum(waiting) - waiting[turn], limit)
        assert 1 <= batch.images <= waiting[turn]
        waiting[turn] -= batch.images
        free -= batch.lanes
        assert free >= 0
        started.append(batch)
    return started


@given(lanes=LANES, limit=LIMIT)
def test_a_lone_image_has_the_whole_device(lanes: int, limit: int) -> None:
    """An image that waits alone gets all lanes."""
    assert plan(lanes, 1, 0, limit) == BatchPlan(1, lanes)


def test_a_batch_gets_no_more_lanes_than_it_may() -> None:
    """`max_lanes` bounds the lanes of a lone image."""
    assert plan(8, 1, 0, 4, max_lanes=3) == BatchPlan(1, 3)


@given(lanes=LANES, waiting=st.lists(WAITING, min_size=1, max_size=5), limit=LIMIT)
def test_no_lane_is_idle_while_a_job_waits(lanes: int, waiting: list[int], limit: int) -> None:
    """However many jobs of however many shapes wait, all lanes get a batch, in as many batches as possible."""
    started = spread(lanes, waiting, limit)
    assert sum(batch.lanes for batch in started) == lanes
    assert len(started) == min(lanes, sum(waiting))
    assert all(batch.images <= limit for batch in started)


@given(lanes=LANES, limit=LIMIT, more=st.integers(0, 50))
def test_a_deep_queue_gives_each_lane_a_batch_of_the_best_size(lanes: int, limit: int, more: int) -> None:
    """Where enough jobs wait for all lanes, each lane runs a batch of the fastest size by itself."""
    assert spread(lanes, [lanes * limit + more], limit) == [BatchPlan(limit, 1)] * lanes


@given(lanes=LANES, waiting=WAITING, limit=LIMIT)
def test_few_jobs_are_spread_evenly(lanes: int, waiting: int, limit: int) -> None:
    """No batch is more than one image larger than another that started with it."""
    images = [batch.images for batch in spread(lanes, [waiting], limit)]
    assert max(images) - min(images) <= 1


def test_other_shapes_fill_the_other_lanes() -> None:
    """Jobs of one shape stay together where another lane has a job of another shape to run."""
    assert spread(2, [3, 1], 8) == [BatchPlan(3, 1), BatchPlan(1, 1)]
    assert spread(2, [3], 8) == [BatchPlan(2, 1), BatchPlan(1, 1)]
    assert spread(4, [5, 1], 8) == [BatchPlan(2, 1), BatchPlan(2, 1), BatchPlan(1, 1), BatchPlan(1, 1)]
    assert spread(4, [2], 8) == [BatchPlan(1, 2), BatchPlan(1, 2)]


def test_lanes_that_are_free_soon_count() -> None:
    """Jobs are divided so that all lanes finish at the same time; the rest waits for the lane that is free first."""
    assert plan(1, 4, 0, 8, [2.0]) == BatchPlan(3, 1)
    assert plan(1, 3, 0, 8, [0.1]) == BatchPlan(2, 1)
    assert plan(1, 2, 0, 8, [0.1]) == BatchPlan(1, 1)
    assert plan(1, 4, 0, 8, [9.0]) == BatchPlan(4, 1)
    assert plan(2, 6, 0, 8, [0.0, 0.0]) == BatchPlan(1, 1)
    assert plan(1, 20, 0, 8, [1.0]) == BatchPlan(8, 1)


def test_a_batch_on_two_lanes_frees_both_at_once() -> None:
    """A running batch counts once for each of its lanes, after its time divided by their number."""
    running = [RunningBatch((), 2, expected_s=4.0, started_s=0.0)]
    assert plan_batch(1, 6, 0, 8, 1, running, image_s=1.0, now_s=1.0) == BatchPlan(3, 1)


def test_lanes_that_are_free_soon_are_left_to_other_shapes() -> None:
    """Where jobs of other shapes wait as well, those lanes are theirs."""
    assert plan(1, 4, 1, 8, [0.5]) == BatchPlan(4, 1)


@given(free=LANES, waiting=WAITING, limit=LIMIT, soon=st.lists(st.floats(0, 100), max_size=5))
def test_busy_lanes_never_make_a_batch_larger_or_empty(free: int, waiting: int, limit: int, soon: list[float]) -> None:
    """A batch has at least one image, and at most as many as without the lanes that are busy."""
    assert 1 <= plan(free, waiting, 0, limit, soon).images <= plan(free, waiting, 0, limit).images


def test_a_batch_has_each_input_in_its_row() -> None:
    """Row i is job i's input with its geometry and params, in one contiguous array; a lone input is not copied."""
    jobs = [job(number) for number in (3, 1, 2)]
    batch = make_batch(jobs)
    assert batch.pixels.flags.c_contiguous
    assert [int(row.max()) for row in batch.pixels] == [3, 1, 2]
    assert [params.top_k for params in batch.params] == [4, 2, 3]
    assert len(batch) == 3
    alone = make_batch(jobs[:1])
    assert alone.pixels.shape == (1, 4, 4, 3)
    assert np.shares_memory(alone.pixels, jobs[0].input.pixels)


@pytest.mark.parametrize("images", [1, 4])
def test_a_batch_without_host_memory_is_out_of_memory(images: int) -> None:
    """Inputs that the host cannot copy into a batch raise OutOfDeviceMemory, for which a batch is halved."""
    jobs = [job(number) for number in range(images)]
    for one in jobs:
        # A copy of it takes 400 PiB.
        pixels = np.broadcast_to(np.uint8(0), (1 << 29, 1 << 29, 3))[:, ::2]
        one.input = ModelInput(pixels, one.input.geometry)
    with pytest.raises(OutOfDeviceMemory, match="Unable to allocate"):
        make_batch(jobs)
