"""Who hears of changes, and what each of them has already."""

from __future__ import annotations

from service.worker.worker import MAX_FRONT_ENDS, Subscribers


class Clock:
    """A clock that moves when the test says so."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_what_a_front_end_has_is_what_it_said_and_was_sent() -> None:
    """A front-end has what it said last, and what it was sent since; of a stranger nothing is known."""
    audience = Subscribers(5.0, Clock())
    audience.heard(b"a", ["v1", "v2"])
    audience.told(b"a", ["v3"])
    assert audience.knows(b"a") == {"v1", "v2", "v3"}
    audience.heard(b"a", ["v2"])
    assert audience.knows(b"a") == {"v2"}
    audience.told(b"stranger", ["v1"])
    assert audience.knows(b"stranger") == frozenset()


def test_the_silent_are_forgotten() -> None:
    """A front-end that was not heard for long enough is gone; one that was is not."""
    clock = Clock()
    audience = Subscribers(5.0, clock)
    audience.heard(b"a", [])
    clock.now_s = 4.0
    audience.heard(b"b", [])
    assert audience.present() == (b"a", b"b")
    clock.now_s = 6.0
    assert audience.present() == (b"b",)


def test_front_ends_are_bounded() -> None:
    """Beyond the bound the one that was silent for longest is forgotten."""
    audience = Subscribers(5.0, Clock())
    for number in range(MAX_FRONT_ENDS):
        audience.heard(str(number).encode(), [])
    audience.heard(b"0", [])
    audience.heard(b"one more", [])
    present = audience.present()
    assert len(present) == MAX_FRONT_ENDS
    assert b"0" in present
    assert b"1" not in present
