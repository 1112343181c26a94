"""Which version answers a request for a model's name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from model.types import Task
from service.traffic_split import TrafficSplit
from service.types import ModelStatus, Readiness
from service.wire.messages import Phase
from service.wire.version_routes import Route, make_routes
from service.wire.worker_view import ServedModel, WorkerView, merge_readiness, merge_routes
from tests.fakes import fake_bundle

NO_SPLIT: TrafficSplit = {}
IDS = [f"request-{number}" for number in range(4000)]


def status(name: str, *, ready: bool = True) -> ModelStatus:
    config = fake_bundle(Task.CLASSIFY, name).config
    return ModelStatus(config, config.version, ready, ("cpu",), "fp32")


ONE, TWO, THREE = status("pets"), status("pets@2"), status("pets@3")


def names(route: Route, ids: list[str] = IDS) -> list[str]:
    return [route.choose(request_id)[0].config.name for request_id in ids]


def test_without_a_split_the_first_served_version_answers() -> None:
    """A version that is added later gets no request for the name, until someone gives it a share."""
    routes = make_routes([ONE, TWO, status("heads")], {})
    assert routes["pets"].only is ONE
    assert make_routes([TWO, ONE], {})["pets"].only is TWO
    assert {name: route.main.config.name for name, route in routes.items()} == {
        "pets": "pets",
        "pets@1": "pets",
        "pets@2": "pets@2",
        "heads": "heads",
        "heads@1": "heads",
    }


def test_shares_hold_over_many_requests() -> None:
    """Ids of any kind are spread by the percentages; the route's main version is that of the largest."""
    route = make_routes([ONE, TWO, THREE], {"pets": {"1": 10, "2": 65, "3": 25}})["pets"]
    counts = Counter(names(route))
    # Five standard deviations of a binomial distribution; the ids, and so the counts, are always the same.
    for version, share in (("pets", 0.10), ("pets@2", 0.65), ("pets@3", 0.25)):
        assert abs(counts[version] - share * len(IDS)) < 5 * (share * (1 - share) * len(IDS)) ** 0.5
    assert route.main is TWO
    assert [round(route.share(one), 6) for one in (ONE, TWO, THREE)] == [0.10, 0.65, 0.25]


def test_a_request_that_is_sent_again_gets_the_same_version() -> None:
    """The choice depends on the id alone; a change of shares moves only the requests that must move."""
    split = make_routes([ONE, TWO], {"pets": {"1": 90, "2": 10}})["pets"]
    assert names(split) == names(split)
    more = make_routes([ONE, TWO], {"pets": {"1": 70, "2": 30}})["pets"]
    assert all(after == "pets@2" for before, after in zip(names(split), names(more), strict=True) if before == "pets@2")


def test_the_share_of_an_unready_version_goes_to_the_others() -> None:
    """Only its requests move, to all the others by their shares. Where none is ready, the request stays where it was
    meant to go, and gets the reason."""
    split = {"pets": {"1": 60, "2": 20, "3": 20}}
    before = make_routes([ONE, TWO, THREE], split)["pets"]
    after = make_routes([ONE, replace(TWO, ready=False), THREE], split)["pets"]
    moved = Counter[str]()
    for request_id in IDS:
        (_, meant), (chosen, still_meant) = before.choose(request_id), after.choose(request_id)
        assert meant.config == still_meant.config
        if meant.config.name == "pets@2":
            moved[chosen.config.name] += 1
        else:
            assert chosen.config == meant.config
    assert set(moved) == {"pets", "pets@3"}
    assert 0.6 < moved["pets"] / moved.total() < 0.9  # 60 of 80
    assert after.ready
    none = make_routes([replace(one, ready=False) for one in (ONE, TWO, THREE)], split)["pets"]
    assert names(none) == names(before)
    assert not none.ready


def test_a_version_that_is_not_served_has_no_share() -> None:
    """Its share goes to the others; where none of the split is served, the first served version answers."""
    route = make_routes([ONE, TWO], {"pets": {"1": 30, "3": 70}})["pets"]
    assert route.only is ONE
    assert route.share(TWO) == 0
    assert make_routes([TWO], {"pets": {"3": 100}})["pets"].only is TWO


def offer(name: str, *, ready: bool = True) -> ServedModel:
    config = fake_bundle(Task.CLASSIFY, name).config
    return ServedModel(config.version, config, ready, "cpu", "fp32")


def view(*offers: ServedModel, phase: Phase | None = Phase.READY, split: TrafficSplit = NO_SPLIT) -> WorkerView:
    splits = {"pets": split} if split else {}
    return WorkerView(phase, "ready", 1.0, offers, splits)


def test_a_worker_that_starts_does_not_decide_the_split() -> None:
    """The split of a ready worker counts: traffic does not move while another one is restarted."""
    offers = offer("pets"), offer("pets@2")
    starting = view(*(replace(one, ready=False) for one in offers), phase=Phase.STARTING)
    route = merge_routes([starting, view(*offers, split={"1": 20, "2": 80})])["pets"]
    assert [percent for _, percent in route.shares] == [20, 80]
    assert merge_routes([view(*offers, phase=None, split={"2": 100})])["pets"].main.config.name == "pets@2"
    assert merge_routes([WorkerView(None, "lost", 1.0, None)]) == {}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"1": 90, "2": 10}, Readiness(True, "ready, without pets@2", 1.0)),
        ({"1": 100}, Readiness(True, "ready, without pets@2", 1.0)),
        ({}, Readiness(True, "ready, without pets@2", 1.0)),
        ({"2": 100}, Readiness(False, "not ready: pets@2", 1.0)),
    ],
)
def test_a_version_that_others_stand_in_for_leaves_the_service_ready(
    split: dict[str, float], expected: Readiness
) -> None:
    """A new version that fails takes no host out of a load balancer, unless it is the only one with a share."""
    assert merge_readiness([view(offer("pets"), offer("pets@2", ready=False), split=split)]) == expected
