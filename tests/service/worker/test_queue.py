"""The queue alone: its bounds, and the order in which jobs leave it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Overloaded
from service.worker.queue import LEAD_S, MAX_MODELS, ArrivalRates, FairShares, JobQueue
from service.worker.types import Job
from tests.service.worker.jobs import job, shape

SMALL, LARGE, OTHER = shape(4), shape(8), shape(4, "other")
LATER_S = 1000.0
"""So long after all jobs came that no more are expected."""


def filled(*jobs: Job, seconds: float = 1.0) -> JobQueue:
    queue = JobQueue(1000, 10**6)
    for one in jobs:
        queue.put(one, seconds, 0.0)
    return queue


def numbers(jobs: tuple[Job, ...]) -> list[int]:
    return [one.key[1] for one in jobs]


def test_the_earliest_deadline_is_first_then_the_earliest_arrival() -> None:
    """Within a model the earliest deadline is next, whatever its shape; only jobs of that shape go with it."""
    queue = filled(job(1, SMALL, 9.0), job(2, LARGE, 5.0), job(3, SMALL, 7.0), job(4, SMALL, 7.0), job(5, LARGE, 6.0))
    assert queue.next()[0] == LARGE
    assert numbers(queue.take(LARGE, 1)) == [2]
    assert queue.next()[0] == LARGE
    assert numbers(queue.take(LARGE, 8)) == [5]
    assert queue.next()[0] == SMALL
    assert numbers(queue.take(SMALL, 2)) == [3, 4]
    assert numbers(queue.take(SMALL, 2)) == [1]
    assert queue.images == 0


@given(
    st.lists(st.tuples(st.sampled_from(["put", "put", "put", "remove", "take"]), st.integers(0, 9), st.integers(1, 4))),
)
def test_its_counts_are_those_of_a_plain_list(steps: list[tuple[str, int, int]]) -> None:
    """After any order of puts, removals and takes: order, depths, pixels and seconds are those of a plain list."""
    queue, plain = JobQueue(1000, 10**6), list[Job]()
    for number, (step, value, kind) in enumerate(steps):
        of = shape(kind * 2, "ab"[kind % 2])
        if step == "put":
            plain.append(job(number, of, deadline_s=float(value)))
            queue.put(plain[-1], 0.5, 0.0)
        elif step == "remove" and plain:
            removed = plain.pop(value % len(plain))
            assert queue.remove(removed.key) is removed
            assert queue.remove(removed.key) is None
        elif step == "take" and (of_shape := sorted((one for one in plain if one.shape == of), key=_due)):
            assert queue.take(of, value + 1) == tuple(of_shape[: value + 1])
            plain = [one for one in plain if one not in of_shape[: value + 1]]
        for model in "ab":
            of_model = sorted((one for one in plain if one.shape.model == model), key=_due)
            if of_model:
                assert queue.models[model].entries[0].job is of_model[0]
            assert queue.depth(model) == len(of_model)
            assert queue.has_slot(model) == bool(of_model)
        assert queue.images == len(plain)
        assert all(queue.depth_of(of) == sum(one.shape == of for one in plain) for of in {one.shape for one in plain})
        assert queue.pixels == sum(one.shape.pixels for one in plain)
        assert queue.seconds == pytest.approx(0.5 * len(plain))
        assert set(queue.models) == {one.shape.model for one in plain}


def _due(one: Job) -> tuple[float, int]:
    return one.deadline_s, one.key[1]


def test_it_is_bounded_by_images_and_by_pixels() -> None:
    """Beyond either bound a job is refused with its Retry-After; once other jobs have left, it is admitted."""
    queue = JobQueue(max_images=2, max_pixels=2 * 64)
    queue.put(job(1), 1.0, 0.0)
    queue.put(job(2), 1.0, 0.0)
    with pytest.raises(Overloaded, match="2 images wait") as caught:
        queue.put(job(3), 1.0, 7.5)
    assert caught.value.retry_after_s == 7.5
    queue.remove((b"test", 1))
    with pytest.raises(Overloaded):
        queue.put(job(4, shape(16)), 1.0, 0.0)
    queue.put(job(5, LARGE), 1.0, 0.0)
    assert queue.images == 2


def test_models_take_turns_by_what_they_had() -> None:
    """The model that used the device least is next. A model that had no jobs is next at once, without credit."""
    queue = filled(*(job(number) for number in range(4)))
    for _ in range(2):
        assert queue.next()[0].model == "m"
        queue.take(SMALL, 1)
        queue.shares.charge("m", 1.0)
    for number in range(4):
        queue.put(job(10 + number, OTHER), 1.0, 0.0)
    turns = []
    while queue.images:
        turns.append(queue.next()[0])
        queue.take(turns[-1], 1)
        queue.shares.charge(turns[-1].model, 1.0)
    assert [one.model for one in turns] == ["other", "m", "other", "m", "other", "other"]


def test_the_seconds_before_a_job_follow_deadlines_and_shares() -> None:
    """Later deadlines of its model are not served before a job, nor more of another model than its share and lead."""
    queue = filled(*(job(number, deadline_s=10.0 + number) for number in range(10)))
    assert queue.seconds_before("m", 99.0, LATER_S) == 10.0
    assert queue.seconds_before("m", 12.5, LATER_S) == 3.0
    assert queue.seconds_before("m", 1.0, LATER_S) == 0.0
    assert queue.seconds_before("other", 99.0, LATER_S) == LEAD_S
    assert queue.seconds_before("other", 1.0, LATER_S) == 0.0
    queue.put(job(20, OTHER, 50.0), 1.0, 0.0)
    assert queue.seconds_before("other", 99.0, LATER_S) == 2.0 + LEAD_S
    assert queue.seconds_before("m", 99.0, LATER_S) == 11.0
    queue.shares.charge("m", 2 * LEAD_S)
    assert queue.seconds_before("other", 99.0, LATER_S) == 2.0


def test_the_seconds_before_a_job_count_what_is_expected_to_arrive() -> None:
    """A model that used more than its share waits for jobs of others that come later: as many as their rate gives until
    it is served, and no more than they may use. One that is within its share waits for none of them."""
    queue = filled(*(job(number, deadline_s=10.0 + number) for number in range(10)))
    for number in range(20, 30):
        queue.put(job(number, OTHER, 50.0), 0.01, 0.0)  # 0.1 s of work a second
    assert queue.seconds_before("m", 9.0, 0.0) == 0.0
    lane_s = 10.0 + 0.1
    assert queue.seconds_before("m", 99.0, 0.0) == pytest.approx(lane_s / 0.9, rel=1e-3)
    assert queue.seconds_before("m", 99.0, 0.0, lanes=2) == pytest.approx(lane_s / 0.95, rel=1e-3)
    assert queue.seconds_before("m", 99.0, 0.0, running_s=1.0) == pytest.approx((lane_s + 0.1) / 0.9, rel=1e-3)
    assert queue.seconds_before("m", 99.0, LATER_S) == pytest.approx(lane_s)
    assert queue.seconds_before("other", 99.0, 0.0) == pytest.approx(0.1 + 0.1 + LEAD_S)
    for number in range(30, 40):
        queue.put(job(number, OTHER, 50.0), 5.0, 0.0)  # far more than its share
    assert queue.seconds_before("m", 99.0, 0.0) == pytest.approx(20.0, abs=LEAD_S)


def test_models_share_what_one_that_is_ahead_must_wait_for() -> None:
    """Of three models the one that is ahead of its share waits until the least has come up to it but for the lead, and
    any other up to it: they are served while it is not."""
    shares = FairShares({})
    for model in ("a", "b", "c"):
        shares.enter(model)
    shares.charge("a", 1.0)
    shares.charge("b", 0.4)
    assert shares.claims_s("a", 0.5, ["b", "c"]) == pytest.approx({"b": 1.1, "c": 1.5 - LEAD_S})
    assert shares.claims_s("c", LEAD_S, ["a", "b"]) == {"a": 0.0, "b": 0.0}
    assert shares.claims_s("a", 0.5, []) == {}


def test_a_repeated_number_replaces_its_job() -> None:
    """A front-end that repeats a number takes no second place: the later job replaces the first."""
    again = job(1, LARGE)
    queue = filled(job(1), again)
    assert queue.images == 1
    assert queue.pixels == 64
    assert queue.take(LARGE, 5) == (again,)
    assert queue.images == 0


def test_arrival_rates_are_means_of_the_last_seconds() -> None:
    """Work that comes evenly has its rate; once none comes, the rate falls and the model is left out."""
    rates = ArrivalRates()
    for step in range(1000):
        rates.record("m", 0.005, step / 100)
    assert rates.rates(10.0)["m"] == pytest.approx(0.5, rel=0.02)
    assert rates.rates(11.0)["m"] == pytest.approx(0.5 / math.e, rel=0.02)
    assert rates.rates(20.0) == {}


def test_the_number_of_arrival_rates_is_bounded() -> None:
    """The model whose last job is the oldest is forgotten."""
    rates = ArrivalRates()
    for number in (0, *range(MAX_MODELS), 0):
        rates.record(str(number), 1.0, 0.0)
    rates.record("new", 1.0, 0.0)
    assert len(rates.rates(0.0)) == MAX_MODELS
    assert {"0", "new"} <= rates.rates(0.0).keys()
    assert "1" not in rates.rates(0.0)
