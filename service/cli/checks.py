"""What `convmlp doctor` prints for one thing that it checks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """`found` is what there is, and after a note or a problem what to do."""

    name: str
    state: State
    found: str
