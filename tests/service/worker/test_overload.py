"""More jobs than the device can serve, in simulated time: what is answered, and the time of a refusal.

`benchmarks/overload.py` measures the whole service on a real clock.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest

from service.errors import Overloaded
from tests.service.worker.dispatcher_bench import FIRST, DispatcherBench, HeldBatches, dispatcher_bench

IMAGE_S = 0.02
"""Of the device, for a model alone."""
FACTOR = 6.0
"""Times its capacity, for a model alone."""
MIXTURE = {FIRST: 0.005, "second": 0.03, "third": 0.025}
"""Seconds of the device for an image, by model."""
MIXTURE_FACTOR = 1.2
SECONDS = 12.0
ROUNDING_S = 1e-9
WARM_S = 4.0
"""Until the queue is as full as it gets."""


@dataclass(frozen=True, slots=True)
class Arrival:
    number: int
    at_s: float
    budget_s: float
    model: str = FIRST


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that ended at `at_s`."""

    arrival: Arrival
    at_s: float
    error: Exception | None

    @property
    def was_accepted(self) -> bool:
        """It was answered, or it waited before it was refused."""
        return self.error is None or self.at_s > self.arrival.at_s + ROUNDING_S

    @property
    def late_s(self) -> float:
        return self.at_s - self.arrival.at_s - self.arrival.budget_s


def arrivals(
    budget_s: Callable[[random.Random], float], rate: float, models: Sequence[str] = (FIRST,)
) -> Iterator[Arrival]:
    """A Poisson process of so many jobs a second, each of one of the models, at random."""
    numbers, at_s = random.Random(7), 0.0
    for number in itertools.count():
        at_s += numbers.expovariate(rate)
        if at_s > SECONDS:
            return
        yield Arrival(number, at_s, budget_s(numbers), numbers.choice(models))


class Simulation:
    """Jobs arrive, and batches end, in the order of their times; only then does the clock move."""

    def __init__(self, bench: DispatcherBench, image_s: Mapping[str, float]) -> None:
        self._image_s = image_s
        self._bench = bench
        self._held = HeldBatches(bench)
        self._began_s = bench.clock()
        self._submitted: dict[int, Arrival] = {}
        self.ended: dict[int, Ended] = {}

    async def run(self, coming: Iterator[Arrival]) -> None:
        arrival = next(coming, None)
        batch = 0
        while arrival is not None or self._outstanding():
            if not self._outstanding():
                assert arrival is not None
                self._submit(arrival)
                arrival = next(coming, None)
                await self._bench.until(lambda: len(self._held) == batch + 1)  # noqa: B023
            model, images = self._bench.runner.batches[batch]
            ends_s = self._bench.clock() + self._image_s[model] * images
            while arrival is not None and self._began_s + arrival.at_s <= ends_s:
                self._submit(arrival)
                arrival = next(coming, None)
            self._bench.clock.now_s = ends_s
            self._held.release(batch)
            batch += 1
            await self._bench.until(lambda: not self._outstanding() or len(self._held) == batch + 1)  # noqa: B023
            self._collect()

    def _outstanding(self) -> int:
        return len(self._submitted) - len(self._bench.results)

    def _submit(self, arrival: Arrival) -> None:
        self._bench.clock.now_s = self._began_s + arrival.at_s
        self._submitted[arrival.number] = arrival
        self._bench.submit(arrival.number, budget_s=arrival.budget_s, model=arrival.model)
        self._collect()

    def _collect(self) -> None:
        for number in self._bench.results.keys() - self.ended.keys():
            result = self._bench.results[number].result
            error = result if isinstance(result, Exception) else None
            self.ended[number] = Ended(self._submitted[number], self._bench.clock() - self._began_s, error)


@pytest.mark.parametrize(
    "budget_s", [lambda _: 2.0, lambda numbers: numbers.uniform(0.5, 4.0)], ids=["one deadline", "mixed deadlines"]
)
async def test_overload(budget_s: Callable[[random.Random], float]) -> None:
    """No job that was accepted is late, at least 95 % of what the device can do is answered, and each Retry-After is
    within a factor of two of the time after which all that had been accepted was done, in whole seconds as the header
    is."""
    async with dispatcher_bench(max_images=256, batch=8) as bench:
        await bench.trial(IMAGE_S)
        simulation = Simulation(bench, {FIRST: IMAGE_S})
        await simulation.run(arrivals(budget_s, FACTOR / IMAGE_S))
    ended = sorted(simulation.ended.values(), key=lambda one: one.arrival.at_s)
    assert len(ended) > 0.9 * FACTOR * SECONDS / IMAGE_S
    answered = [one for one in ended if one.error is None]
    assert all(one.at_s <= one.arrival.at_s + one.arrival.budget_s + ROUNDING_S for one in answered)
    refused = [one for one in ended if one.error is not None]
    assert {type(one.error) for one in refused} == {Overloaded}
    assert not any(one.was_accepted for one in refused)
    in_time = sum(one.at_s <= SECONDS for one in answered)
    assert in_time >= 0.95 * SECONDS / IMAGE_S
    done_s = 0.0
    for one in ended:
        if one.error is None:
            done_s = max(done_s, one.at_s)
        elif one.arrival.at_s > WARM_S:
            assert isinstance(one.error, Overloaded)
            truth_s = max(math.ceil(done_s - one.at_s), 1)
            retry_after_s = max(math.ceil(one.error.retry_after_s), 1)
            assert truth_s / 2 <= retry_after_s <= 2 * truth_s


@pytest.mark.parametrize(
    "budget_s",
    [lambda _: 0.5, lambda _: 2.0, lambda numbers: numbers.choice((0.5, 3.0))],
    ids=["short deadline", "long deadline", "mixed deadlines"],
)
async def test_overload_by_a_mixture(budget_s: Callable[[random.Random], float]) -> None:
    """Where three models together get more jobs than the device can serve, at most a hundredth of the accepted ones is
    late, and by no more than a batch; the device loses little of its time, and at most a fifth is refused."""
    batch = 4
    async with dispatcher_bench(max_images=256, batch=batch, models=tuple(MIXTURE)) as bench:
        for model, image_s in MIXTURE.items():
            await bench.trial(image_s, model)
        simulation = Simulation(bench, MIXTURE)
        rate = MIXTURE_FACTOR * len(MIXTURE) / sum(MIXTURE.values())
        await simulation.run(arrivals(budget_s, rate, tuple(MIXTURE)))
    ended = list(simulation.ended.values())
    accepted = [one for one in ended if one.was_accepted]
    in_time = [one for one in accepted if one.error is None and one.late_s <= ROUNDING_S]
    assert len(accepted) - len(in_time) <= 0.01 * len(accepted)
    assert max(one.late_s for one in accepted) <= batch * max(MIXTURE.values())
    assert sum(MIXTURE[one.arrival.model] for one in in_time if one.at_s <= SECONDS) >= 0.95 * SECONDS
    assert len(ended) - len(accepted) <= 0.2 * len(ended)
