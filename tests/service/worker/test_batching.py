"""The batching policy alone: how what waits is spread over the lanes that are free."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.worker.batching import BatchLimits, Share, as_batch, share
from tests.service.worker.jobs import job, shape

LANES, WAITING, MOST = st.integers(1, 24), st.integers(1, 300), st.integers(1, 40)


def spread(free: int, waiting: list[int], most: int) -> list[Share]:
    """The batches that are started at once; `waiting`: how many wait of each shape, in the order of their turns."""
    started: list[Share] = []
    waiting = waiting.copy()
    while free and any(waiting):
        turn = next(at for at, mine in enumerate(waiting) if mine)
        part = share(free, waiting[turn], sum(waiting) - waiting[turn], most)
        assert 1 <= part.images <= waiting[turn]
        waiting[turn] -= part.images
        free -= part.lanes
        assert free >= 0
        started.append(part)
    return started


@given(lanes=LANES, most=MOST)
def test_a_lone_image_has_the_whole_device(lanes: int, most: int) -> None:
    """Whatever the device and the model, nobody shares with one that nobody else waits beside."""
    assert share(lanes, 1, 0, most) == Share(1, lanes)


@given(lanes=LANES, waiting=st.lists(WAITING, min_size=1, max_size=5), most=MOST)
def test_no_lane_is_idle_while_something_waits(lanes: int, waiting: list[int], most: int) -> None:
    """However many of however many shapes wait, all lanes are taken, and by as many batches as there can be."""
    started = spread(lanes, waiting, most)
    assert sum(part.lanes for part in started) == lanes
    assert len(started) == min(lanes, sum(waiting))
    assert all(part.images <= most for part in started)


@given(lanes=LANES, most=MOST, more=st.integers(0, 50))
def test_a_deep_queue_gives_each_lane_a_batch_of_the_best_size(lanes: int, most: int, more: int) -> None:
    """Where there is enough for all lanes, each runs by itself, at the size that is fastest."""
    assert spread(lanes, [lanes * most + more], most) == [Share(most, 1)] * lanes


@given(lanes=LANES, waiting=WAITING, most=MOST)
def test_what_is_too_little_for_all_lanes_is_spread_evenly(lanes: int, waiting: int, most: int) -> None:
    """No batch is more than one image larger than another that was started with it."""
    images = [part.images for part in spread(lanes, [waiting], most)]
    assert max(images) - min(images) <= 1


def test_other_shapes_may_have_the_other_lanes() -> None:
    """Jobs of one shape are not torn apart where the lane beside them has a job of another shape to do."""
    assert spread(2, [3, 1], 8) == [Share(3, 1), Share(1, 1)]
    assert spread(2, [3], 8) == [Share(2, 1), Share(1, 1)]
    assert spread(4, [5, 1], 8) == [Share(2, 1), Share(2, 1), Share(1, 1), Share(1, 1)]
    assert spread(4, [2], 8) == [Share(1, 2), Share(1, 2)]


def test_a_batch_is_bounded_by_images_by_pixels_and_by_what_is_best() -> None:
    """Whichever bound is met first holds; a picture larger than every bound still runs alone."""
    limits = BatchLimits(max_images=4, max_pixels=64 * 3)
    assert limits.images(shape(4)) == 4
    assert limits.images(shape(8)) == 3
    assert limits.images(shape(99)) == 1
    assert limits.images(shape(4), best_pixels=2 * 16) == 2
    assert limits.images(shape(8), best_pixels=2 * 64) == 2
    assert limits.images(shape(8), best_pixels=9 * 64) == 3
    assert limits.images(shape(4), best_pixels=1) == 1
    assert limits.images(shape(8), best_pixels=150) == 2
    assert limits.images(shape(8), best_pixels=170) == 3
    assert limits.images(shape(8), best_pixels=999) == 3


def test_a_batch_has_each_input_in_its_row() -> None:
    """Row i is input i with its geometry and params, in one contiguous array; one that is alone is not copied."""
    jobs = [job(number) for number in (3, 1, 2)]
    batch = as_batch([one.input for one in jobs], [one.params for one in jobs])
    assert batch.pixels.flags.c_contiguous
    assert [int(row.max()) for row in batch.pixels] == [3, 1, 2]
    assert [one.top_k for one in batch.params] == [4, 2, 3]
    assert len(batch) == 3
    alone = as_batch([jobs[0].input], [jobs[0].params])
    assert alone.pixels.shape == (1, 4, 4, 3)
    assert np.shares_memory(alone.pixels, jobs[0].input.pixels)


def test_lanes_that_are_free_soon_count() -> None:
    """What waits is divided so that all lanes are through at one time; what is left over waits for the other lane."""
    assert share(1, 4, 0, 8, soon=[2.0]) == Share(3, 1)
    assert share(1, 3, 0, 8, soon=[0.1]) == Share(2, 1)
    assert share(1, 2, 0, 8, soon=[0.1]) == Share(1, 1)
    assert share(1, 4, 0, 8, soon=[9.0]) == Share(4, 1)
    assert share(2, 6, 0, 8, soon=[0.0, 0.0]) == Share(1, 1)
    assert share(1, 20, 0, 8, soon=[1.0]) == Share(8, 1)


def test_lanes_that_are_free_soon_are_left_to_other_shapes() -> None:
    """Where others wait as well, they will have them."""
    assert share(1, 4, 1, 8, soon=[0.5]) == Share(4, 1)


@given(free=LANES, mine=WAITING, most=MOST, soon=st.lists(st.floats(0, 100), max_size=5))
def test_what_is_free_soon_never_makes_a_batch_larger_or_empty(
    free: int, mine: int, most: int, soon: list[float]
) -> None:
    """A batch has an image at least, and no more than it would have without the lanes that come later."""
    assert 1 <= share(free, mine, 0, most, soon).images <= share(free, mine, 0, most).images
