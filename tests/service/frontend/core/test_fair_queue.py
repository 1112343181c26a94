"""The queue before decoding: turns of callers and of kinds of work, estimates, and what is remembered."""

from __future__ import annotations

import pytest

from service.frontend.core.fair_queue import MAX_REMEMBERED, FairQueue, VirtualTimes


def put(queue: FairQueue[str], work: str, caller: str, model: str = "m", seconds: float = 1.0) -> None:
    queue.put(work, caller, model, seconds)


def order(queue: FairQueue[str], count: int) -> str:
    return " ".join(queue.take() for _ in range(count))


def test_work_of_one_size_is_taken_in_its_order() -> None:
    """First come, first served, for one caller and one model."""
    queue: FairQueue[str] = FairQueue()
    for at in range(5):
        put(queue, str(at), "a")
    assert order(queue, 5) == "0 1 2 3 4"


def test_callers_get_equal_time() -> None:
    """Whose work is four times as long is served a fourth as often, however much of it waits."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(20):
        put(queue, "long", "a", seconds=4.0)
        put(queue, "short", "b", seconds=1.0)
    served = order(queue, 20).split()
    assert served.count("long") == 4


def test_a_caller_s_models_get_equal_time() -> None:
    """Its large pictures for one model do not hold up its requests for another; other callers lose nothing by that."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(20):
        put(queue, "segment", "a", "segmenter", seconds=4.0)
        put(queue, "classify", "a", "classifier", seconds=1.0)
        put(queue, "other", "b", "classifier", seconds=1.0)
    served = order(queue, 24).split()
    assert served.count("other") == pytest.approx(15, abs=2)
    assert served.count("classify") == pytest.approx(7.5, abs=2)


def test_who_was_away_saves_up_nothing() -> None:
    """A caller that comes back takes turns from now on; it is not served alone for the time that it was away."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(30):
        put(queue, "a", "a")
    order(queue, 10)
    for _ in range(10):
        put(queue, "b", "b")
    assert order(queue, 10).split().count("b") == pytest.approx(5, abs=1)


def test_leaving_for_a_moment_gains_nothing() -> None:
    """A caller that sends one request after another is charged for the ones before while others wait."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(30):
        put(queue, "b", "b")
    put(queue, "a", "a", seconds=10.0)
    served = order(queue, 2)
    put(queue, "again", "a", seconds=10.0)
    assert "a" in served.split()
    assert "again" not in order(queue, 5)


def test_a_small_picture_need_not_wait_for_large_ones() -> None:
    """Work that takes far less time is of another kind, which has its own share of its caller's time."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(30):
        put(queue, "large", "a", seconds=1.0)
    order(queue, 5)
    for _ in range(30):
        put(queue, "small", "a", seconds=0.01)
    served = order(queue, 35).split()
    assert "small" in served[:2]
    assert served.count("large") >= 1
    assert served.count("small") == 30


def test_small_pictures_cannot_hold_up_a_large_one_for_ever() -> None:
    """However many of them come, the large one is next once they were given its time."""
    queue: FairQueue[str] = FairQueue()
    put(queue, "small", "a", seconds=0.1)
    put(queue, "large", "a", seconds=1.0)
    served = []
    for _ in range(30):
        served.append(queue.take())
        put(queue, "small", "a", seconds=0.1)
    assert "large" in served


def test_removed_work_leaves_nothing() -> None:
    """Work is removed wherever it stands, and what is behind it moves up."""
    queue: FairQueue[str] = FairQueue()
    places = [queue.put(str(at), "a", "m", 1.0) for at in range(4)]
    assert queue.remove(places[0]) == "0"
    assert queue.remove(places[2]) == "2"
    assert queue.seconds == 2.0
    assert order(queue, 2) == "1 3"
    assert queue.seconds == 0.0


def test_what_is_ahead_follows_from_the_shares() -> None:
    """A caller's own work for the model counts whole, and that of others as far as their shares go."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        put(queue, "x", "a")

    def ahead(caller: str, model: str = "m") -> float:
        return queue.seconds_before(caller, model, 1.0)

    assert ahead("a") == 10.0
    assert ahead("b") == 1.0
    assert ahead("a", "other") == 1.0
    put(queue, "y", "c", seconds=0.5)
    assert ahead("b") == 2.0
    assert ahead("a") == 10.5
    assert queue.seconds_before("a", "m", 0.01) == pytest.approx(0.03)


def test_work_that_took_longer_than_expected_is_charged() -> None:
    """A caller whose pictures are slow to decode gets no more time for it."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(10):
        put(queue, "a", "a")
        put(queue, "b", "b")
    assert queue.take() == "a"
    queue.charge("a", 5.0)
    assert order(queue, 6) == "b b b b b b"


def test_a_bounded_number_of_callers_is_remembered() -> None:
    """Of those that left and were given more than their share, the oldest is forgotten."""
    times: VirtualTimes[int] = VirtualTimes()
    for caller in range(MAX_REMEMBERED + 10):
        times.enter(caller)
        times.charge(caller, 1.0)
        times.leave(caller)
    times.enter(0)
    times.enter(MAX_REMEMBERED)
    assert (times.times[0], times.times[MAX_REMEMBERED]) == (0.0, 1.0)
    assert len(times._left) < MAX_REMEMBERED + 1
