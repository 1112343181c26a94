"""The batching policy alone: which of what waits runs next."""

from __future__ import annotations

import numpy as np

from model.types import Geometry, ModelInput, QueryParams, Size
from service.worker.batching import BatchLimits, expired, next_batch
from service.worker.queue import Job, Shape

SMALL, LARGE = Shape("m", "m", 4, 4), Shape("m", "m", 8, 8)
LIMITS = BatchLimits(max_images=4, max_pixels=64 * 3)


def job(number: int, shape: Shape = SMALL, deadline_s: float = 100.0) -> Job:
    size = Size(shape.height, shape.width)
    pixels = np.zeros((shape.height, shape.width, 3), np.uint8)
    return Job(
        key=(b"test", number),
        shape=shape,
        input=ModelInput(pixels, Geometry(size, size)),
        params=QueryParams(),
        enqueued_s=0.0,
        deadline_s=deadline_s,
        reply=lambda done: None,  # noqa: ARG005
    )


def test_an_idle_device_takes_what_waits() -> None:
    """A lone job runs at once: the policy never waits for company."""
    (only,) = next_batch([job(1)], LIMITS, {})
    assert only.key == (b"test", 1)
    assert next_batch([], LIMITS, {}) == ()


def test_only_one_shape_shares_a_batch_and_the_oldest_decides() -> None:
    """Jobs of another shape or model stay behind, whatever lies between."""
    other = Shape("other", "other", 4, 4)
    waiting = [job(1), job(2, LARGE), job(3), job(4, other), job(5)]
    assert [one.key[1] for one in next_batch(waiting, LIMITS, {})] == [1, 3, 5]
    assert [one.key[1] for one in next_batch(waiting[1:], LIMITS, {})] == [2]


def test_a_batch_is_bounded_by_images_by_pixels_and_by_memory() -> None:
    """Whichever bound is met first holds; a picture larger than the pixel bound still runs alone."""
    assert len(next_batch([job(n) for n in range(9)], LIMITS, {})) == 4
    assert len(next_batch([job(n, LARGE) for n in range(9)], LIMITS, {})) == 3
    assert len(next_batch([job(n) for n in range(9)], LIMITS, {SMALL: 2})) == 2
    assert len(next_batch([job(n, Shape("m", "m", 99, 99)) for n in range(9)], LIMITS, {})) == 1


def test_a_passed_deadline_is_seen() -> None:
    """A job is expired from its deadline on, not before."""
    late, later = job(1, deadline_s=5.0), job(2, deadline_s=5.1)
    assert expired([late, later], now_s=5.0) == (late,)
