"""When a request is retried, and after which pause; with a fake clock."""

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
from convmlp_client.requester import Requester
from convmlp_client.retry import Deadline, Retries
from convmlp_client.transport import TransportConfig, parse_url

NO_RANDOM = Retries(random=lambda: 0.0)
"""Without a random part, so that pauses are exact."""


@dataclass
class FakeClock:
    """Time passes only in `sleep`."""

    now: float = 1000.0
    oversleep_s: float = 0.0
    pauses: list[float] = field(default_factory=list)

    def now_s(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds + self.oversleep_s


@dataclass
class Service:
    """Raises these errors in turn, then returns."""

    errors: list[ClientError]
    attempts: int = 0

    async def __call__(self) -> str:
        self.attempts += 1
        if self.attempts <= len(self.errors):
            raise self.errors[self.attempts - 1]
        return "reply"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


async def test_success_needs_no_pause(clock: FakeClock) -> None:
    """If the first attempt succeeds, there is no pause."""
    assert await NO_RANDOM.call(Service([]), Deadline.after(10, clock)) == "reply"
    assert clock.pauses == []


async def test_pauses_double_up_to_a_limit(clock: FakeClock) -> None:
    """Without a Retry-After the pauses double from `first_wait_s` to `backoff_limit_s`."""
    retries = replace(NO_RANDOM, attempts=8, first_wait_s=0.1, backoff_limit_s=1.0)
    service = Service([ConnectionFailed("no")] * 7)
    assert await retries.call(service, Deadline.after(None, clock)) == "reply"
    assert clock.pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0])


async def test_retry_after_is_respected(clock: FakeClock) -> None:
    """No attempt is made before the service's Retry-After."""
    service = Service([Overloaded("busy", retry_after_s=3.0), Unavailable("starting", retry_after_s=0.05)])
    assert await NO_RANDOM.call(service, Deadline.after(60, clock)) == "reply"
    assert clock.pauses == [3.0, 0.2]  # the second Retry-After is shorter than the second backoff


@pytest.mark.parametrize(("random", "pauses"), [(0.0, [4.0, 0.2]), (0.5, [4.5, 0.3]), (1.0, [5.0, 0.4])])
async def test_pauses_have_a_random_part(clock: FakeClock, random: float, pauses: list[float]) -> None:
    """Each pause has a random part, which never makes it shorter than the Retry-After."""
    service = Service([Overloaded("busy", retry_after_s=4.0), ConnectionFailed("no")])
    await replace(NO_RANDOM, random=lambda: random).call(service, Deadline.after(None, clock))
    assert clock.pauses == pytest.approx(pauses)


async def test_attempts_are_bounded(clock: FakeClock) -> None:
    """After the last attempt its error is raised."""
    errors: list[ClientError] = [ConnectionFailed(str(number)) for number in range(10)]
    service = Service(errors)
    with pytest.raises(ConnectionFailed) as caught:
        await replace(NO_RANDOM, attempts=3).call(service, Deadline.after(None, clock))
    assert (service.attempts, caught.value) == (3, errors[2])
    assert len(clock.pauses) == 2


async def test_no_pause_beyond_the_deadline(clock: FakeClock) -> None:
    """If a pause would end after the deadline, the error is raised at once."""
    service = Service([Overloaded("busy", retry_after_s=2.0)] * 3)
    with pytest.raises(Overloaded) as caught:
        await NO_RANDOM.call(service, Deadline.after(5.0, clock))
    assert (service.attempts, clock.pauses) == (3, [2.0, 2.0])
    assert caught.value.retry_after_s == 2.0


async def test_a_long_retry_after_is_not_awaited(clock: FakeClock) -> None:
    """A Retry-After above `longest_wait_s` raises the error at once."""
    service = Service([Overloaded("busy", retry_after_s=16.0)])
    with pytest.raises(Overloaded):
        await NO_RANDOM.call(service, Deadline.after(None, clock))
    assert (service.attempts, clock.pauses) == (1, [])


@pytest.mark.parametrize("kind", [BadImage, ProtocolError, *dict.fromkeys(SERVICE_ERRORS.values())])
async def test_only_retryable_errors_are_retried(clock: FakeClock, kind: type[ClientError]) -> None:
    """Only Overloaded, RateLimited and Unavailable are retried; other errors of the service are raised at once."""
    service = Service([kind("no")])
    send: Callable[[], Awaitable[str]] = service
    if kind.code in ("overloaded", "rate-limited", "unavailable"):
        assert await NO_RANDOM.call(send, Deadline.after(None, clock)) == "reply"
    else:
        with pytest.raises(kind):
            await NO_RANDOM.call(send, Deadline.after(None, clock))
        assert (service.attempts, clock.pauses) == (1, [])


async def test_other_exceptions_are_raised(clock: FakeClock) -> None:
    """An exception that is not a ClientError is raised unchanged."""

    async def defect() -> None:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        await NO_RANDOM.call(defect, Deadline.after(None, clock))
    assert clock.pauses == []


async def test_retries_are_logged(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    """Each further attempt is logged with the error and the pause."""
    caplog.set_level(logging.INFO, "convmlp_client")
    await NO_RANDOM.call(Service([Overloaded("too much to do", retry_after_s=3.0)]), Deadline.after(None, clock))
    assert caplog.messages == ["too much to do; trying again in 3.0 s"]


def test_the_remaining_time_of_a_deadline(clock: FakeClock) -> None:
    """The remaining time shrinks as the clock advances, and raises DeadlineExceeded when it is used up."""
    deadline = Deadline.after(2.0, clock)
    assert deadline.remaining_s() == 2.0
    clock.now += 1.5
    assert deadline.remaining_s() == 0.5
    assert not deadline.passes_within(0.4)
    assert deadline.passes_within(0.5)
    clock.now += 0.5
    with pytest.raises(DeadlineExceeded):
        deadline.remaining_s()
    never = Deadline.after(None, clock)
    assert never.remaining_s() is None
    assert not never.passes_within(1e9)


async def test_wait_until_ready_has_a_reason_after_a_long_pause() -> None:
    """If a pause between two polls ends after the deadline, the error still has the reason."""
    config = TransportConfig(parse_url("http://127.0.0.1:1"), None, "test", 1, None, None, None)
    requester = Requester(config, None, NO_RANDOM, FakeClock(oversleep_s=60.0))
    with pytest.raises(DeadlineExceeded, match="was not ready within 5 s: cannot connect to "):
        await requester.wait_until_ready(5.0)
    await requester.aclose()
