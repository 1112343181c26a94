"""A child's heartbeat: when it counts as silent, with real sockets and a clock that the test moves."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from service.process import BEAT_INTERVAL_S
from service.supervision.heartbeat import MIN_TIMEOUT_S, START_TIMEOUT_S, Heartbeat
from tests.fakes import FakeClock

TIMEOUT_S = 10.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The supervisor's end of a lifeline, and the child's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def silence(heartbeat: Heartbeat, clock: FakeClock) -> float:
    """Seconds of regular checks until the child counts as silent."""
    started_s = clock()
    while not heartbeat.is_silent():
        clock.now_s += BEAT_INTERVAL_S
        assert clock() < started_s + 10 * START_TIMEOUT_S
    return clock() - started_s


def test_a_child_is_silent_after_its_limit(ends: tuple[socket.socket, socket.socket]) -> None:
    """Each beat starts the limit again."""
    ours, theirs = ends
    clock = FakeClock()
    heartbeat = Heartbeat(ours, TIMEOUT_S, clock)
    for _ in range(100):
        theirs.send(b".")
        assert not heartbeat.is_silent()
        clock.now_s += 1
    assert silence(heartbeat, clock) == pytest.approx(TIMEOUT_S, abs=2)


def test_a_child_may_take_long_to_start(ends: tuple[socket.socket, socket.socket]) -> None:
    """Before the first beat the limit is that of a start."""
    clock = FakeClock()
    assert silence(Heartbeat(ends[0], TIMEOUT_S, clock), clock) == pytest.approx(START_TIMEOUT_S, abs=2)


def test_a_stop_of_the_supervisor_is_no_silence_of_its_child(ends: tuple[socket.socket, socket.socket]) -> None:
    """After an hour without a check the child gets nearly its whole limit to send a beat."""
    ours, theirs = ends
    clock = FakeClock()
    heartbeat = Heartbeat(ours, TIMEOUT_S, clock)
    theirs.send(b".")
    assert not heartbeat.is_silent()
    clock.now_s += 3600
    assert not heartbeat.is_silent()
    assert silence(heartbeat, clock) >= TIMEOUT_S - 4 * BEAT_INTERVAL_S


def test_a_limit_is_at_least_some_beats(ends: tuple[socket.socket, socket.socket]) -> None:
    """A limit shorter than the time between two beats would kill every child."""
    clock = FakeClock()
    heartbeat = Heartbeat(ends[0], 0.001, clock)
    ends[1].send(b".")
    assert silence(heartbeat, clock) >= MIN_TIMEOUT_S
