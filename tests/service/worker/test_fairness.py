"""Fair shares of the device's time, without a device."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.worker.queue import LEAD_S, MAX_MODELS, FairShares

COSTS = st.floats(0.01, 5.0)


def shared_out(shares: FairShares, costs: dict[str, float], turns: int) -> dict[str, float]:
    """The seconds that each model used after so many turns, where all of them always have jobs that are due at once."""
    had = dict.fromkeys(costs, 0.0)
    for model in costs:
        shares.enter(model)
    for _ in range(turns):
        model = shares.next(dict.fromkeys(costs, 0.0))
        shares.charge(model, costs[model])
        had[model] += costs[model]
    return had


@given(COSTS, COSTS)
def test_models_that_always_wait_get_equal_time(a: float, b: float) -> None:
    """Whatever their batches cost, two models differ by no more than the lead and one batch of each."""
    for lead_s in (0.0, LEAD_S):
        had = shared_out(FairShares({}, lead_s), {"a": a, "b": b}, turns=200)
        assert abs(had["a"] - had["b"]) <= lead_s + a + b + 1e-9


@given(COSTS, COSTS, st.floats(0.1, 10.0))
def test_weights_are_shares(a: float, b: float, weight: float) -> None:
    """A model of weight w gets w times the time of a model of weight 1, up to one batch of each."""
    had = shared_out(FairShares({"a": weight}, 0.0), {"a": a, "b": b}, turns=200)
    assert abs(had["a"] / weight - had["b"]) <= a / weight + b + 1e-9


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.0, 1.0)), min_size=1, max_size=50), COSTS)
def test_the_first_due_is_next_within_the_lead(due: list[tuple[str, float]], cost: float) -> None:
    """Whatever is due when, a model runs before the one that is due first only where that one is more than the lead
    ahead."""
    shares, had = FairShares({}), dict.fromkeys("ab", 0.0)
    for model in "ab":
        shares.enter(model)
    for first, other_s in due:
        (other,) = set("ab") - {first}
        model = shares.next({first: 0.0, other: other_s + 1e-3})
        assert model == first or had[first] > had[other] + LEAD_S
        shares.charge(model, cost / 10)
        had[model] += cost / 10


def test_a_model_that_comes_is_not_behind_the_lead_of_another() -> None:
    """A model that is ahead of its share takes nothing from one that had no work before: that one may catch up."""
    shares = FairShares({})
    shares.enter("a")
    shares.enter("b")
    assert shares.next({"a": 1.0, "b": 2.0}) == "a"
    shares.charge("a", LEAD_S)
    assert shares.next({"a": 1.0, "b": 2.0}) == "a"
    shares.charge("a", 0.1)
    shares.enter("c")
    assert shares.next({"a": 1.0, "b": 3.0, "c": 2.0}) == "c"


def at_once(*models: str) -> dict[str, float]:
    return dict.fromkeys(models, 0.0)


def test_an_idle_model_saves_up_no_credit() -> None:
    """A model that was idle for long is next at once, and then every second time, not every time."""
    shares = FairShares({}, 0.0)
    shared_out(shares, {"a": 1.0, "b": 1.0}, turns=2)
    shared_out(shares, {"a": 1.0}, turns=100)
    shares.enter("b")
    turns = []
    for _ in range(6):
        turns.append(shares.next(at_once("a", "b")))
        shares.charge(turns[-1], 1.0)
    assert turns[0] == "b"
    assert turns.count("b") == 3


def test_a_charge_is_corrected_by_the_time_that_a_batch_took() -> None:
    """A batch that ended sooner than expected gives the rest of its charge back."""
    shares = FairShares({}, 0.0)
    for model in ("a", "b"):
        shares.enter(model)
    shares.charge("a", 10.0)
    shares.charge("a", -9.5)
    shares.charge("b", 1.0)
    assert shares.next(at_once("a", "b")) == "a"


def test_the_number_of_models_is_bounded() -> None:
    """The model that entered longest ago is forgotten, and starts again like a new one."""
    shares = FairShares({})
    shares.enter("a")
    shares.charge("a", 100.0)
    for number in range(MAX_MODELS):
        shares.enter(str(number))
    assert shares.next(at_once("a", "5")) == "a"
