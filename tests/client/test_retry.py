"""When a request is sent again, and how long is waited before; with a clock that the tests move."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from convmlp_client.errors import (
    SERVICE_ERRORS,
    BadImage,
    ClientError,
    ConnectionFailed,
    DeadlineExceeded,
    Overloaded,
    ProtocolError,
    Unavailable,
)
from convmlp_client.retry import Deadline, Retries

UNMOVED = Retries(random=lambda: 0.0)
"""Without a random part, so that pauses can be told exactly."""


@dataclass
class FakeClock:
    """Time passes only where someone sleeps."""

    now: float = 1000.0
    pauses: list[float] = field(default_factory=list)

    def now_s(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@dataclass
class Service:
    """Gives these errors one after the other, then answers."""

    errors: list[ClientError]
    asked: int = 0

    async def __call__(self) -> str:
        self.asked += 1
        if self.asked <= len(self.errors):
            raise self.errors[self.asked - 1]
        return "an answer"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_a_first_answer_is_the_answer(clock: FakeClock) -> None:
    """Nothing is waited for where nothing fails."""
    assert await UNMOVED.call(Service([]), Deadline.after(10, clock)) == "an answer"
    assert clock.pauses == []


async def test_pauses_double_up_to_a_limit(clock: FakeClock) -> None:
    """Where nobody says how long, the pauses grow from the first one to the longest."""
    retries = replace(UNMOVED, attempts=8, first_wait_s=0.1, backoff_limit_s=1.0)
    service = Service([ConnectionFailed("no")] * 7)
    assert await retries.call(service, Deadline.after(None, clock)) == "an answer"
    assert clock.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])


async def test_the_service_is_left_alone_for_as_long_as_it_asked(clock: FakeClock) -> None:
    """No attempt is made before the time that the service named."""
    service = Service([Overloaded("busy", retry_after_s=3.0), Unavailable("starting", retry_after_s=0.05)])
    assert await UNMOVED.call(service, Deadline.after(60, clock)) == "an answer"
    assert clock.pauses == [3.0, 0.2]  # the second asked for less than the second pause of our own


@pytest.mark.parametrize(("random", "pauses"), [(0.0, [4.0, 0.2]), (0.5, [4.5, 0.3]), (1.0, [5.0, 0.4])])
async def test_callers_who_were_refused_together_do_not_come_back_together(
    clock: FakeClock, random: float, pauses: list[float]
) -> None:
    """A random part is added to every pause, also to one that the service named, and never taken from it."""
    service = Service([Overloaded("busy", retry_after_s=4.0), ConnectionFailed("no")])
    await replace(UNMOVED, random=lambda: random).call(service, Deadline.after(None, clock))
    assert clock.pauses == pytest.approx(pauses)


async def test_attempts_are_bounded(clock: FakeClock) -> None:
    """After the last attempt its own error is told."""
    errors: list[ClientError] = [ConnectionFailed(str(number)) for number in range(10)]
    service = Service(errors)
    with pytest.raises(ConnectionFailed) as caught:
        await replace(UNMOVED, attempts=3).call(service, Deadline.after(None, clock))
    assert (service.asked, caught.value) == (3, errors[2])
    assert len(clock.pauses) == 2


async def test_no_attempt_is_made_beyond_the_deadline(clock: FakeClock) -> None:
    """Where the pause would end after it the error is told at once: waiting for nothing helps nobody."""
    service = Service([Overloaded("busy", retry_after_s=2.0)] * 3)
    with pytest.raises(Overloaded) as caught:
        await UNMOVED.call(service, Deadline.after(5.0, clock))
    assert (service.asked, clock.pauses) == (3, [2.0, 2.0])
    assert caught.value.retry_after_s == 2.0


async def test_a_service_that_asks_for_long_is_not_waited_for(clock: FakeClock) -> None:
    """A pause beyond the patience of `Retries` is the caller's to decide about."""
    service = Service([Overloaded("busy", retry_after_s=16.0)])
    with pytest.raises(Overloaded):
        await UNMOVED.call(service, Deadline.after(None, clock))
    assert (service.asked, clock.pauses) == (1, [])


@pytest.mark.parametrize("kind", [BadImage, ProtocolError, *dict.fromkeys(SERVICE_ERRORS.values())])
async def test_only_what_may_succeed_is_tried_again(clock: FakeClock, kind: type[ClientError]) -> None:
    """Refusals and broken connections are; what is wrong with the request, or beyond repair, is not."""
    service = Service([kind("no")])
    asking: Callable[[], Awaitable[str]] = service
    if kind.code in ("overloaded", "rate-limited", "unavailable"):
        assert await UNMOVED.call(asking, Deadline.after(None, clock)) == "an answer"
    else:
        with pytest.raises(kind):
            await UNMOVED.call(asking, Deadline.after(None, clock))
        assert (service.asked, clock.pauses) == (1, [])


async def test_other_exceptions_are_nobodys_to_retry(clock: FakeClock) -> None:
    """A defect is told as it is."""

    async def defect() -> None:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        await UNMOVED.call(defect, Deadline.after(None, clock))
    assert clock.pauses == []


async def test_another_attempt_is_told_in_the_log(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever listens to the log of `convmlp_client` learns why it takes so long."""
    caplog.set_level(logging.INFO, "convmlp_client")
    await UNMOVED.call(Service([Overloaded("too much to do", retry_after_s=3.0)]), Deadline.after(None, clock))
    assert caplog.messages == ["too much to do; trying again in 3.0 s"]


def test_what_is_left_of_a_deadline(clock: FakeClock) -> None:
    """It shrinks as time passes, and is an error once it is nothing."""
    deadline = Deadline.after(2.0, clock)
    assert deadline.left_s() == 2.0
    clock.now += 1.5
    assert deadline.left_s() == 0.5
    assert not deadline.is_passed_in(0.4)
    assert deadline.is_passed_in(0.5)
    clock.now += 0.5
    with pytest.raises(DeadlineExceeded):
        deadline.left_s()
    never = Deadline.after(None, clock)
    assert never.left_s() is None
    assert not never.is_passed_in(1e9)
