"""What bounds the images of a batch."""

from __future__ import annotations

from service.worker.batching import MAX_CAPS, BatchLimits, BatchSizeLimits
from tests.service.worker.jobs import shape


def test_the_smallest_bound_counts() -> None:
    """A batch is never larger than the limit, the best size or what had room; a cap is only ever lowered."""
    found = BatchSizeLimits(BatchLimits(8, 10**6))
    assert found.most(shape()) == 8
    found.set_best(shape(), 6)
    assert found.most(shape()) == 6
    found.cap(shape(), 2)
    found.cap(shape(), 4)
    assert found.most(shape()) == 2
    assert found.most(shape(8)) == 2  # the best has as many pixels
    found.cap(shape(8), 7)
    assert found.most(shape(8)) == 2


def test_an_empty_slot_leaves_nothing_behind() -> None:
    """What was found out of a model goes with its slot, and only that."""
    found = BatchSizeLimits(BatchLimits(8, 10**6))
    for model in ("a", "b"):
        found.set_best(shape(model=model), 6)
        found.cap(shape(model=model), 2)
    found.forget("a")
    assert (found.most(shape(model="a")), found.most(shape(model="b"))) == (8, 2)


def test_the_caps_are_bounded() -> None:
    """Beyond so many shapes all caps are learnt anew."""
    found = BatchSizeLimits(BatchLimits(8, 10**9))
    for side in range(1, MAX_CAPS + 2):
        found.cap(shape(side), 1)
    assert [found.most(shape(side)) for side in (1, MAX_CAPS, MAX_CAPS + 1)] == [8, 8, 1]
