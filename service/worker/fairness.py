"""Whose turn it is: each model has its share of the device's time, whatever the others ask for.

Start-time fair queueing (Goyal, Vin and Cheng 1997): a model's virtual time is what it has had of the device divided
by its weight, and the one with the least is next. One that had nothing to do starts again at the present virtual time:
it does not save up credit for time in which it asked for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_MODELS = 1024
"""Whose virtual times are remembered; that of any other is the present one."""


class FairShares:
    """Virtual times of models. `weights`: of those that are to have another share than 1."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._times: dict[str, float] = {}
        self._present = 0.0

    def weight(self, model: str) -> float:
        return self._weights.get(model, 1.0)

    def enter(self, model: str) -> None:
        """A model of which nothing waited has something to do."""
        self._times[model] = max(self._times.pop(model, 0.0), self._present)
        if len(self._times) > MAX_MODELS:
            del self._times[next(iter(self._times))]  # the one that came back longest ago

    def next(self, models: Iterable[str]) -> str:
        """Of these, which have something to do: the one whose turn it is."""
        model = min(models, key=self._time)
        self._present = max(self._present, self._time(model))
        return model

    def charge(self, model: str, seconds: float) -> None:
        """A model takes so much of the device, or gives back what it did not need. Seconds of one lane."""
        self._times[model] = self._time(model) + seconds / self.weight(model)

    def _time(self, model: str) -> float:
        return self._times.get(model, self._present)
