from __future__ import annotations

import asyncio

import pytest

from service.cli.load.loops import MAX_IN_HAND, closed_loop, open_loop
from service.cli.load.outcome import ANSWERED, Ending, Outcome, Tally

REFUSED = Outcome(Ending.REFUSED, "overloaded")
FAILED = Outcome(Ending.FAILED, "HTTP 500")


async def test_a_closed_loop_has_as_many_requests_in_hand_as_clients() -> None:
    """Never more, and each client asks again only when it was answered; numbers are given once."""
    in_hand, most, asked = 0, 0, []

    async def ask(number: int) -> Outcome:
        nonlocal in_hand, most
        asked.append(number)
        in_hand += 1
        most = max(most, in_hand)
        await asyncio.sleep(0.002)
        in_hand -= 1
        return ANSWERED

    tally = await closed_loop(ask, 5, 0.1)
    assert most == 5
    assert sorted(asked) == list(range(len(asked)))
    assert len(tally.latencies_s) == len(asked)
    assert min(tally.latencies_s) >= 0.002


async def test_an_answer_to_an_early_request_counts_for_the_rate_alone() -> None:
    """The window has no edge at which answers are lost: early requests are in the rate, and in no percentile."""

    async def ask(number: int) -> Outcome:
        await asyncio.sleep(0.2 if number == 0 else 0.0)
        return ANSWERED if number == 0 else FAILED

    tally = await closed_loop(ask, 1, 0.8, warm_up_s=0.1)
    assert tally.in_window == 1
    assert tally.latencies_s == []


async def test_refusals_and_failures_are_counted_by_kind() -> None:
    """Each ending is counted as what it was, and none of the unanswered has a latency."""
    endings = [ANSWERED, REFUSED, FAILED, REFUSED]

    async def ask(number: int) -> Outcome:
        await asyncio.sleep(0)
        return endings[number] if number < len(endings) else ANSWERED

    tally = await closed_loop(ask, 4, 0.1)
    assert tally.refused == {"overloaded": 2}
    assert tally.failed == {"HTTP 500": 1}
    assert tally.requests == len(tally.latencies_s) + 3


async def test_a_refused_client_pauses() -> None:
    """A server that refuses everything is not asked as fast as the loop can."""
    asked = 0

    async def ask(_: int) -> Outcome:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return REFUSED

    await closed_loop(ask, 1, 0.2)
    assert 1 <= asked <= 5


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    """Requests come at their times however slow the answers are; the same seed gives as many."""

    async def slow(_: int) -> Outcome:
        await asyncio.sleep(0.3)
        return ANSWERED

    first = await open_loop(slow, rate=200, seconds=0.2, seed=3)
    second = await open_loop(slow, rate=200, seconds=0.2, seed=3)
    assert first.requests == second.requests
    assert 20 <= first.requests <= 60


async def test_latency_of_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """A client that was late with a request does not forgive the server what the caller had to wait."""
    loop = asyncio.get_running_loop()

    async def ask(number: int) -> Outcome:
        if number == 0:
            until_s = loop.time() + 0.1
            while loop.time() < until_s:  # holds up the whole client
                pass
        await asyncio.sleep(0)
        return ANSWERED

    tally = await open_loop(ask, rate=1000, seconds=0.05)
    assert len(tally.latencies_s) > 10
    assert sorted(tally.latencies_s)[len(tally.latencies_s) // 2] > 0.04


async def test_an_open_loop_is_bounded() -> None:
    """Beyond its bound on requests in hand it sends none, and says how many were due."""
    most = 0
    release = asyncio.Event()

    async def stuck(number: int) -> Outcome:
        nonlocal most
        most = max(most, number + 1)
        await release.wait()
        return ANSWERED

    async def let_go() -> None:
        while most < MAX_IN_HAND:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        release.set()

    letting = asyncio.create_task(let_go())
    tally = await open_loop(stuck, rate=20_000, seconds=0.3)
    await letting
    assert tally.unsent > 0
    assert tally.requests == tally.unsent + len(tally.latencies_s)


def test_percentiles_are_of_answers_in_milliseconds() -> None:
    """Of the answered requests alone, interpolated; NaN where there are none."""
    tally = Tally(1.0, latencies_s=[0.001 * value for value in range(1, 102)])
    assert tally.percentiles_ms(0, 50, 99) == pytest.approx([1, 51, 100])
    assert tally.mean_ms == pytest.approx(51)
    (nothing,) = Tally(1.0).percentiles_ms(50)
    assert nothing != nothing
