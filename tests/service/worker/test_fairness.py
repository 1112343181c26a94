"""Fair shares of the device's time, alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.worker.queue import MAX_MODELS, FairShares

COSTS = st.floats(0.01, 5.0)


def shared_out(shares: FairShares, costs: dict[str, float], turns: int) -> dict[str, float]:
    """The seconds that each model had after so many turns; all of them always have something to do."""
    had = dict.fromkeys(costs, 0.0)
    for model in costs:
        shares.enter(model)
    for _ in range(turns):
        model = shares.next(costs)
        shares.charge(model, costs[model])
        had[model] += costs[model]
    return had


@given(COSTS, COSTS)
def test_models_that_always_wait_have_alike_whatever_a_batch_costs(a: float, b: float) -> None:
    """After any number of turns two models differ by no more than a batch of each."""
    had = shared_out(FairShares({}), {"a": a, "b": b}, turns=200)
    assert abs(had["a"] - had["b"]) <= a + b


@given(COSTS, COSTS, st.floats(0.1, 10.0))
def test_weights_are_shares(a: float, b: float, weight: float) -> None:
    """A model of weight w has w times the time of one of weight 1, but for a batch of each."""
    had = shared_out(FairShares({"a": weight}), {"a": a, "b": b}, turns=200)
    assert abs(had["a"] / weight - had["b"]) <= a / weight + b + 1e-9


def test_who_asked_for_nothing_has_saved_nothing_up() -> None:
    """A model that comes back after a long time has its turn at once, and then every second one, not all of them."""
    shares = FairShares({})
    shared_out(shares, {"a": 1.0, "b": 1.0}, turns=2)
    shared_out(shares, {"a": 1.0}, turns=100)
    shares.enter("b")
    turns = []
    for _ in range(6):
        turns.append(shares.next(["a", "b"]))
        shares.charge(turns[-1], 1.0)
    assert turns[0] == "b"
    assert turns.count("b") == 3


def test_what_was_expected_is_corrected_by_what_was_needed() -> None:
    """A batch that was over sooner than expected gives the rest back."""
    shares = FairShares({})
    for model in ("a", "b"):
        shares.enter(model)
    shares.charge("a", 10.0)
    shares.charge("a", -9.5)
    shares.charge("b", 1.0)
    assert shares.next(["a", "b"]) == "a"


def test_it_remembers_so_many_models() -> None:
    """Models that came and went leave nothing behind; one that was forgotten has its turn as a newcomer."""
    shares = FairShares({})
    shares.enter("a")
    shares.charge("a", 100.0)
    for number in range(MAX_MODELS):
        shares.enter(str(number))
    assert shares.next(["a", "5"]) == "a"
