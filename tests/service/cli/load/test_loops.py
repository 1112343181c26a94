from __future__ import annotations

import asyncio

import pytest

from service.cli.load.loops import ANSWERED, MAX_IN_FLIGHT, Measurement, Outcome, Status, closed_loop, open_loop

REFUSED = Outcome(Status.REFUSED, "overloaded")
FAILED = Outcome(Status.FAILED, "HTTP 500")


async def test_a_closed_loop_has_as_many_requests_in_flight_as_clients() -> None:
    """A client sends its next request only after an answer, and every request has its own number."""
    in_flight, most, sent = 0, 0, []

    async def send(number: int) -> Outcome:
        nonlocal in_flight, most
        sent.append(number)
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.002)
        in_flight -= 1
        return ANSWERED

    measurement = await closed_loop(send, 5, 0.3)
    assert most == 5
    assert sorted(sent) == list(range(len(sent)))
    assert len(measurement.latencies_s) == len(sent)
    assert min(measurement.latencies_s) >= 0.002


async def test_an_answer_to_a_warm_up_request_counts_only_for_the_rate() -> None:
    """The rate loses no answer at the window's start; percentiles are of requests within the window."""

    async def send(number: int) -> Outcome:
        await asyncio.sleep(0.2)
        return ANSWERED if number == 0 else FAILED

    measurement = await closed_loop(send, 1, 3.0, warm_up_s=0.1)
    assert measurement.answers_in_window == 1
    assert measurement.latencies_s == []


async def test_refusals_and_failures_are_counted_by_reason() -> None:
    """Refused and failed requests have no latency."""
    outcomes = [ANSWERED, REFUSED, FAILED, REFUSED]

    async def send(number: int) -> Outcome:
        await asyncio.sleep(0)
        return outcomes[number] if number < len(outcomes) else ANSWERED

    measurement = await closed_loop(send, 4, 0.3)
    assert measurement.refused == {"overloaded": 2}
    assert measurement.failed == {"HTTP 500": 1}
    assert measurement.requests == len(measurement.latencies_s) + 3


async def test_a_refused_client_pauses() -> None:
    """A server that refuses everything is not flooded with retries."""
    sent = 0

    async def send(_: int) -> Outcome:
        nonlocal sent
        sent += 1
        await asyncio.sleep(0)
        return REFUSED

    await closed_loop(send, 1, 0.2)
    assert 1 <= sent <= 5


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    """Requests are due at their times however slow the answers are; the same seed gives the same times."""

    async def send(_: int) -> Outcome:
        await asyncio.sleep(0.3)
        return ANSWERED

    first = await open_loop(send, rate=200, seconds=0.2, seed=3)
    second = await open_loop(send, rate=200, seconds=0.2, seed=3)
    assert first.requests == second.requests
    assert 20 <= first.requests <= 60


async def test_latency_of_an_open_loop_counts_from_when_a_request_was_due() -> None:
    """A request that the client sends late has waited since it was due."""
    loop = asyncio.get_running_loop()

    async def send(number: int) -> Outcome:
        if number == 0:
            end_s = loop.time() + 0.1
            while loop.time() < end_s:  # blocks the client
                pass
        await asyncio.sleep(0)
        return ANSWERED

    measurement = await open_loop(send, rate=1000, seconds=0.05)
    assert len(measurement.latencies_s) > 10
    assert sorted(measurement.latencies_s)[len(measurement.latencies_s) // 2] > 0.04


async def test_an_open_loop_is_bounded() -> None:
    """Beyond its bound on requests in flight it sends none, and counts how many were due."""
    sent = 0
    release = asyncio.Event()

    async def send(_: int) -> Outcome:
        nonlocal sent
        sent += 1
        if sent == MAX_IN_FLIGHT:
            # Requests that are due while the bound is reached: some, whatever the machine's pace.
            asyncio.get_running_loop().call_later(0.05, release.set)
        await release.wait()
        return ANSWERED

    measurement = await open_loop(send, rate=20_000, seconds=0.3)
    assert measurement.unsent > 0
    assert measurement.requests == measurement.unsent + len(measurement.latencies_s)


def test_percentiles_are_of_answers_in_milliseconds() -> None:
    """Percentiles are interpolated over the answered requests; NaN without any."""
    measurement = Measurement(1.0, latencies_s=[0.001 * value for value in range(1, 102)])
    assert measurement.percentiles_ms(0, 50, 99) == pytest.approx([1, 51, 100])
    assert measurement.mean_ms == pytest.approx(51)
    (nothing,) = Measurement(1.0).percentiles_ms(50)
    assert nothing != nothing
