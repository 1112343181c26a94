"""The expected time of an image."""

from __future__ import annotations

import random

import pytest

from service.worker.batching import MAX_KNOWN, SMOOTHING, LatencyEstimator
from tests.service.worker.jobs import shape


def test_the_first_batch_does_not_count_and_later_ones_are_smoothed() -> None:
    """The first batch chooses kernels; from the second on the mean follows the batches."""
    latency = LatencyEstimator()
    latency.record(shape(), 1, 100.0)
    assert latency.image_s(shape()) == 0.0
    latency.record(shape(), 4, 8.0)
    assert latency.image_s(shape()) == 2.0
    latency.record(shape(), 1, 3.0)
    assert latency.image_s(shape()) == pytest.approx(2.0 + SMOOTHING)


def test_times_that_vary_are_expected_to_vary() -> None:
    """Equal batches never take longer than expected. Of times that vary at random, few are beyond the bound, and it
    follows when they become equal again."""
    latency, draw = LatencyEstimator(), random.Random(1)
    assert latency.longer_s(shape()) == 0.0
    for images in (1, 4, 2, 8):
        latency.record(shape(), images, 0.1 * images)
    assert latency.longer_s(shape()) == pytest.approx(0.0)
    beyond = 0
    for _ in range(1000):
        image_s = draw.gauss(0.1, 0.02)
        beyond += image_s > latency.image_s(shape()) + latency.longer_s(shape())
        latency.record(shape(), 1, image_s)
    assert 10 <= beyond <= 100
    for _ in range(100):
        latency.record(shape(), 1, 0.1)
    assert latency.longer_s(shape()) == pytest.approx(0.0, abs=1e-6)


def test_an_unknown_shape_is_as_fast_for_its_pixels_as_the_model() -> None:
    """The speed of one shape holds for the other shapes of its model, and for no other model."""
    latency = LatencyEstimator()
    for _ in range(2):
        latency.record(shape(4), 1, 2.0)
    assert latency.image_s(shape(8)) == 8.0
    assert latency.image_s(shape(8, "other")) == 0.0


def test_one_slow_shape_does_not_slow_unknown_ones() -> None:
    """After an input of few pixels that took seconds, an unknown shape is as fast as the model was before."""
    latency = LatencyEstimator()
    latency.record_trial(shape(8), 1, 1.0)
    for _ in range(2):
        latency.record(shape(1), 1, 6.0)
    assert latency.image_s(shape(8)) == 1.0
    assert latency.image_s(shape(1)) == 6.0


def test_a_trial_counts_until_jobs_ran() -> None:
    """A trial gives a model its first estimate; the first batch that counts replaces it."""
    latency = LatencyEstimator()
    latency.record(shape(), 1, 100.0)
    latency.record_trial(shape(), 4, 4.0)
    assert latency.image_s(shape()) == 1.0
    latency.record(shape(), 1, 5.0)
    assert latency.image_s(shape()) == 5.0


def test_the_size_of_label_maps_counts() -> None:
    """Images of one shape with label maps of other sizes take as long as their pixels; equal sizes unlearn nothing."""
    latency = LatencyEstimator()
    for output in (1000, 1000, 2000, 9000, *[1000] * 100):
        latency.record(shape(4), 2, 2 * (1.0 + output / 1000), 2 * output)
    for output in (500, 1000, 9000, 50_000):
        assert latency.image_s(shape(4), output) == pytest.approx(1.0 + output / 1000, rel=0.01)
    assert latency.image_s(shape(8), 9000) == pytest.approx(4.0 + 9.0, rel=0.01)
    assert latency.image_s(shape(4)) == pytest.approx(2.0, rel=0.01)


def test_label_maps_of_about_one_size_teach_nothing() -> None:
    """Times of almost equal label maps differ by chance: a far larger one is not refused for it."""
    latency = LatencyEstimator()
    for output, seconds in ((1000, 1.0), (1000, 1.0), (1100, 3.0), (1200, 2.0)):
        latency.record(shape(4), 1, seconds, output)
    mean_s = latency.image_s(shape(4))
    assert latency.image_s(shape(4), 64_000_000) == mean_s


def test_the_number_of_shapes_is_bounded() -> None:
    """The shape that was recorded longest ago is forgotten first."""
    latency = LatencyEstimator()
    for side in range(1, MAX_KNOWN + 2):
        for _ in range(2):
            latency.record(shape(side, str(side)), 1, 1.0)
    assert latency.image_s(shape(1, "1")) == 0.0
    assert latency.image_s(shape(2, "2")) == 1.0
