"""Detects a child process whose event loop no longer runs.

A child sends a beat over its lifeline every `BEAT_INTERVAL_S`. Its silence counts only while the supervisor itself
runs: after a stop of the supervisor, or of both, a healthy child has not been silent.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from service.process import BEAT_INTERVAL_S

START_TIMEOUT_S = 300.0
"""How long a process may take until its first beat: it imports its libraries before."""
MIN_TIMEOUT_S = 4 * BEAT_INTERVAL_S


class Heartbeat:
    """The beats of one child, which arrive at `lifeline`. Call `is_silent` every `BEAT_INTERVAL_S`."""

    def __init__(self, lifeline: socket.socket, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        lifeline.setblocking(False)
        self._lifeline = lifeline
        self._timeout_s = max(timeout_s, MIN_TIMEOUT_S)
        self._limit_s = START_TIMEOUT_S
        self._clock = clock
        self._silent_s = 0.0
        self._checked_s = clock()

    def is_silent(self) -> bool:
        """Whether the child has sent nothing for longer than its limit."""
        now_s = self._clock()
        since_s, self._checked_s = now_s - self._checked_s, now_s
        if self._received():
            self._silent_s, self._limit_s = 0.0, self._timeout_s
        else:
            self._silent_s += min(since_s, 2 * BEAT_INTERVAL_S)
        return self._silent_s > self._limit_s

    def _received(self) -> bool:
        try:
            return bool(self._lifeline.recv(4096))
        except OSError:  # nothing has arrived, or the child has exited
            return False
