"""One request and its answer, over any transport: its id, its clock, and where its time went."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass
from typing import Self

from service.types import Timings

SANE_ID = re.compile(r"[\x20-\x7e]{1,128}")
"""A caller's id that may stand in logs and headers."""
STAGES = ("decode", "queue", "infer", "post")


@dataclass(slots=True)
class Exchange:
    """`started_s` is on the clock of `time.monotonic`. `timings` is set by whoever predicts."""

    request_id: str
    started_s: float
    timings: Timings | None = None

    @classmethod
    def begin(cls, given_id: str) -> Self:
        """A request that came now, by its caller's id if that is sane, else by a new one."""
        return cls(given_id if SANE_ID.fullmatch(given_id) else uuid.uuid4().hex, time.monotonic())

    def durations_ms(self) -> dict[str, float]:
        """By stage, in ms, and their `total` until now; with several images each stage is its slowest image's."""
        seconds = {} if self.timings is None else {stage: getattr(self.timings, stage) for stage in STAGES}
        seconds["total"] = time.monotonic() - self.started_s
        return {stage: value * 1000 for stage, value in seconds.items()}

    def server_timing(self) -> str:
        """The value of the header Server-Timing (W3C), durations in ms."""
        return ", ".join(f"{stage};dur={value:.2f}" for stage, value in self.durations_ms().items())
