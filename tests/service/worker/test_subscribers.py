"""The front-ends that receive changes, and the configs that each of them has."""

from __future__ import annotations

from service.worker.worker import MAX_FRONT_ENDS, Subscribers
from tests.fakes import FakeClock


def test_a_front_end_has_the_configs_that_it_named_and_was_sent() -> None:
    """A front-end has the versions of its last Hello and those sent since. Other messages change nothing."""
    subscribers = Subscribers(5.0, FakeClock())
    subscribers.received(b"a", ["v1", "v2"])
    subscribers.sent(b"a", ["v3"])
    assert subscribers.knows(b"a") == {"v1", "v2", "v3"}
    subscribers.received(b"a")
    assert subscribers.knows(b"a") == {"v1", "v2", "v3"}
    subscribers.received(b"a", ["v2"])
    assert subscribers.knows(b"a") == {"v2"}
    subscribers.sent(b"stranger", ["v1"])
    assert subscribers.knows(b"stranger") == frozenset()


def test_silent_front_ends_are_forgotten() -> None:
    """A front-end that sent nothing for `forget_after_s` is forgotten, and no other."""
    clock = FakeClock(0.0)
    subscribers = Subscribers(5.0, clock)
    subscribers.received(b"a", [])
    clock.now_s = 4.0
    subscribers.received(b"b", [])
    assert subscribers.present() == (b"a", b"b")
    clock.now_s = 6.0
    assert subscribers.present() == (b"b",)


def test_the_number_of_front_ends_is_bounded() -> None:
    """Beyond the bound the one that was silent for longest is forgotten."""
    subscribers = Subscribers(5.0, FakeClock())
    for number in range(MAX_FRONT_ENDS):
        subscribers.received(str(number).encode(), [])
    subscribers.received(b"0", [])
    subscribers.received(b"one more", [])
    present = subscribers.present()
    assert len(present) == MAX_FRONT_ENDS
    assert b"0" in present
    assert b"1" not in present
