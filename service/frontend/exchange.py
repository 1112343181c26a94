"""One request and its answer, over any transport: its id, its clock, where its time went, and what became of it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from service.types import Timings

SANE_ID = re.compile(r"[\x20-\x7e]{1,128}")
"""A caller's id that may stand in logs and headers."""
STAGES = ("decode", "queue", "infer", "post")

_ids = random.Random()  # an id has to be another one, not a secret: the system's random numbers cost a call to it


def slowest(timings: Iterable[Timings]) -> Timings:
    """Each stage's longest; 0 where there is none."""
    every = tuple(timings)
    return Timings(*(max((getattr(one, stage) for one in every), default=0.0) for stage in STAGES))


@dataclass(slots=True)
class Exchange:
    """`started_s` is on the clock of `time.monotonic`. All else is filled in by whoever comes to know it.

    `method` is HTTP's, or gRPC's `package.Service/Method`; `path` and the `route` that it goes are HTTP's; `status` is
    what the transport says;
    `outcome` is `ok`, `cancelled` or a domain error's code; `failed`: it is the service that is to blame.
    """

    request_id: str
    started_s: float
    timings: Timings | None = None
    method: str = ""
    path: str = ""
    route: str = ""
    caller: str = ""
    task: str = ""
    model: str = ""
    outcome: str = ""
    status: int | str | None = None
    failed: bool = False
    request_bytes: int = 0
    reply_bytes: int = 0

    @classmethod
    def begin(cls, given_id: str) -> Self:
        """A request that came now, by its caller's id if that is sane, else by a new one."""
        sane = given_id and SANE_ID.fullmatch(given_id)
        return cls(given_id if sane else f"{_ids.getrandbits(128):032x}", time.monotonic())

    def durations_ms(self) -> dict[str, float]:
        """By stage, in ms, and their `total` until now; with several images each stage is its slowest image's."""
        durations = {} if self.timings is None else {stage: getattr(self.timings, stage) * 1000 for stage in STAGES}
        durations["total"] = (time.monotonic() - self.started_s) * 1000
        return durations

    def server_timing(self) -> str:
        """The value of the header Server-Timing (W3C), durations in ms."""
        return ", ".join([f"{stage};dur={value:.2f}" for stage, value in self.durations_ms().items()])
