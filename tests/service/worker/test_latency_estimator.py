"""What is known of the device's speed."""

from __future__ import annotations

import pytest

from service.worker.estimates import MAX_KNOWN, SMOOTHING, LatencyEstimator
from tests.service.worker.jobs import shape


def test_a_first_batch_says_nothing_and_later_ones_are_smoothed() -> None:
    """Kernels are chosen in the first; after it the mean follows the batches that run."""
    pace = LatencyEstimator()
    pace.ran(shape(), 1, 100.0)
    assert pace.seconds(shape()) == 0.0
    pace.ran(shape(), 4, 8.0)
    assert pace.seconds(shape()) == 2.0
    pace.ran(shape(), 1, 3.0)
    assert pace.seconds(shape()) == pytest.approx(2.0 + SMOOTHING)


def test_an_unknown_shape_is_as_fast_for_its_pixels_as_the_model() -> None:
    """What was learnt of one shape is expected of the others of its model, and of no other model."""
    pace = LatencyEstimator()
    for _ in range(2):
        pace.ran(shape(4), 1, 2.0)
    assert pace.seconds(shape(8)) == 8.0
    assert pace.seconds(shape(8, "other")) == 0.0


def test_a_trial_is_what_to_expect_until_jobs_ran() -> None:
    """A model that was only tried has an estimate; the first batch of jobs that counts takes its place at once."""
    pace = LatencyEstimator()
    pace.ran(shape(), 1, 100.0)
    pace.tried(shape(), 4, 4.0)
    assert pace.seconds(shape()) == 1.0
    pace.ran(shape(), 1, 5.0)
    assert pace.seconds(shape()) == 5.0


def test_it_remembers_so_many_shapes() -> None:
    """What was not seen for longest is forgotten first."""
    pace = LatencyEstimator()
    for side in range(1, MAX_KNOWN + 2):
        for _ in range(2):
            pace.ran(shape(side, str(side)), 1, 1.0)
    assert pace.seconds(shape(1, "1")) == 0.0
    assert pace.seconds(shape(2, "2")) == 1.0
