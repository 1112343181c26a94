"""How long a worker takes to start, learnt from its last start: the Retry-After of a worker that is not ready."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from service.worker.state_folder import NOTHING_KEPT, StateFolder

UNKNOWN_RETRY_S = 2.0
"""Retry-After at the beginning of a start of unknown length; then it is the time that the start has taken so far."""
MIN_RETRY_S = 0.5

_imported_s = time.monotonic()


def process_age_s() -> float:
    """Seconds since this process started, imports included; without Linux's /proc, since this module was imported."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        # The field's unit and epoch: ticks since boot (proc_pid_stat(5), field 22; the 20th after the command's name).
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.monotonic() - _imported_s


class StartTime:
    """The time that a start takes, from the process's start until all models are checked.

    `key`: the settings on which it depends. What a start measures for the next ones does not count, for they do not
    measure it again.
    """

    def __init__(
        self, key: Sequence[str], state: StateFolder = NOTHING_KEPT, age_s: Callable[[], float] = process_age_s
    ) -> None:
        self._key = key
        self._state = state
        self._age_s = age_s
        self.seconds = max(0.0, state.read("start", key, float) or 0.0)
        """Of the last start that ended; 0 where none is known."""

    def left_s(self) -> float:
        """Expected seconds until this start ends. A start that takes longer than the last one, or the first of all, is
        expected to take longer the longer it takes."""
        age_s = self._age_s()
        if not self.seconds:
            return max(age_s, UNKNOWN_RETRY_S)
        return max(self.seconds - age_s, age_s / 4, MIN_RETRY_S)

    def ended(self, measuring_s: float) -> None:
        """This start ended; of its time, `measuring_s` went into measurements."""
        self.seconds = max(0.0, self._age_s() - measuring_s)
        self._state.write("start", self._key, self.seconds)
