"""The bounds on the images of a batch."""

from __future__ import annotations

import pytest

from service.worker.batching import MAX_CAPS, BatchSizeLimits
from service.worker.types import Shape
from tests.service.worker.jobs import shape


def test_configuration_bounds_images_and_pixels() -> None:
    """Whichever bound is met first holds; a picture larger than every bound still runs alone."""
    limits = BatchSizeLimits(max_images=4, max_pixels=64 * 3)
    for limit in (limits.configured, limits.max_images):
        assert [limit(shape(side)) for side in (4, 8, 99)] == [4, 3, 1]


@pytest.mark.parametrize(
    ("of", "best_pixels", "images"),
    [
        (shape(4), 2 * 16, 2),
        (shape(8), 2 * 64, 2),
        (shape(8), 9 * 64, 3),
        (shape(4), 1, 1),
        (shape(8), 150, 2),
        (shape(8), 170, 3),
        (shape(8), 999, 3),
    ],
)
def test_the_best_size_counts_by_pixels(of: Shape, best_pixels: int, images: int) -> None:
    """The best batch of a model has so many pixels; the nearest number of images has about as many."""
    limits = BatchSizeLimits(max_images=4, max_pixels=64 * 3)
    limits.set_best(of._replace(height=1, width=best_pixels), 1)
    assert limits.max_images(of) == images


def test_the_smallest_bound_counts() -> None:
    """A batch is never larger than the configured, the best or the halved size; a halved size never grows."""
    limits = BatchSizeLimits(8, 10**6)
    assert limits.max_images(shape()) == 8
    limits.set_best(shape(), 6)
    assert limits.max_images(shape()) == 6
    assert limits.halve(shape(), 5) == 2
    assert limits.halve(shape(), 8) == 4
    assert limits.max_images(shape()) == 2
    assert limits.max_images(shape(8)) == 2  # the best size has as many pixels
    limits.halve(shape(8), 14)
    assert limits.max_images(shape(8)) == 2
    assert limits.configured(shape()) == 8


def test_a_single_image_cannot_be_halved() -> None:
    """A lone image that does not fit changes no limit."""
    limits = BatchSizeLimits(8, 10**6)
    assert limits.halve(shape(), 1) == 0
    assert limits.max_images(shape()) == 8


def test_an_emptied_slot_is_forgotten() -> None:
    """What was measured of a model is dropped with its slot, and nothing else."""
    limits = BatchSizeLimits(8, 10**6)
    for model in ("a", "b"):
        limits.set_best(shape(model=model), 6)
        limits.halve(shape(model=model), 4)
    limits.forget("a")
    assert (limits.max_images(shape(model="a")), limits.max_images(shape(model="b"))) == (8, 2)


def test_the_number_of_halved_shapes_is_bounded() -> None:
    """Beyond so many shapes all halved sizes are learnt anew."""
    limits = BatchSizeLimits(8, 10**9)
    for side in range(1, MAX_CAPS + 2):
        limits.halve(shape(side), 2)
    assert [limits.max_images(shape(side)) for side in (1, MAX_CAPS, MAX_CAPS + 1)] == [8, 8, 1]
