"""Content negotiation of HTTP (RFC 9110, section 12): the values of Accept and Accept-Encoding, with their weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WEIGHT = re.compile(r"[01](\.[0-9]*)?")


@dataclass(frozen=True, slots=True)
class WeightedValue:
    """A value in lower case, its parameters, and its weight from 0, which means "not this", to 1."""

    value: str
    parameters: str
    weight: float

    @property
    def text(self) -> str:
        """Without the weight."""
        return f"{self.value};{self.parameters}" if self.parameters else self.value


def weighted_values(field: str) -> list[WeightedValue]:
    """The values of a header field, in their order. A malformed weight counts as 0."""
    values = []
    for part in field.lower().split(","):
        value, *parameters = (piece.strip() for piece in part.split(";"))
        weight, others = 1.0, []
        for parameter in parameters:
            name, _, text = (piece.strip() for piece in parameter.partition("="))
            if name == "q":
                weight = float(text) if _WEIGHT.fullmatch(text) and float(text) <= 1 else 0.0
            else:
                others.append(parameter)
        if value:
            values.append(WeightedValue(value, ";".join(others), weight))
    return values


def preferred_coding(accept_encoding: str | None, offered: Sequence[str]) -> str | None:
    """The content coding that a client prefers of `offered`; None where it takes none, or prefers none."""
    if accept_encoding is None:
        return None
    weights = {one.value: one.weight for one in weighted_values(accept_encoding)}
    others = weights.get("*", 0.0)
    best, weight = None, weights.get("identity", 0.0)
    for coding in offered:
        if weights.get(coding, others) > weight:
            best, weight = coding, weights.get(coding, others)
    return best
