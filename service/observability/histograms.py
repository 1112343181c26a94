"""Histograms of what is measured for each request: gathered in memory, and counted in groups.

prometheus_client's own take a tenth of all that a front-end interprets for a request, and more of a worker's: a lock,
checks and a search through the buckets for each value.
"""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import compress, repeat, starmap

from prometheus_client import CollectorRegistry
from prometheus_client.core import Exemplar, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Observed = tuple[float, Exemplar | None]
"""A value, and the trace that it is of."""

MAX_GATHERED = 1 << 17
"""Values that wait to be counted: about once a second, when the event loop's lag is reported, and whenever metrics are
read."""


def exemplar_of(ids: dict[str, str] | None, value: float) -> Exemplar | None:
    """The exemplar of a value that was measured now, in the trace of these ids; None where it was not traced."""
    return Exemplar(ids, value, time.time()) if ids else None


class Observations:
    """The values with one choice of labels. Values are in the histogram's unit."""

    __slots__ = ("_gathered", "add", "bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        """Upper bounds of the buckets, rising; the last is infinity."""
        self.counts = [0] * len(bounds)
        self.exemplars: list[Exemplar | None] = [None] * len(bounds)
        self.total = 0.0
        self._gathered: deque[Observed] = deque(maxlen=MAX_GATHERED)
        self.add: Callable[[Observed], None] = self._gathered.append
        """Observe a value. From any thread."""

    def count(self) -> None:
        """Count what was gathered. From one thread at a time."""
        gathered = self._gathered
        # Without bytecodes for each value: there are several of each request.
        observed = [*starmap(gathered.popleft, repeat((), len(gathered)))]
        if not observed:
            return
        values, exemplars = zip(*observed, strict=True)
        bucket_of = partial(bisect_left, self.bounds)
        for bucket, count in Counter(map(bucket_of, values)).items():
            self.counts[bucket] += count
        self.total += sum(values)
        for value, exemplar in compress(observed, exemplars):
            self.exemplars[bucket_of(value)] = exemplar


class Histogram(Collector):
    """A metric of the registry: `Observations` by label values. `buckets` are upper bounds, rising and finite."""

    def __init__(
        self,
        name: str,
        documentation: str,
        label_names: Sequence[str],
        *,
        registry: CollectorRegistry,
        buckets: Sequence[float],
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._label_names = label_names
        self._bounds = (*map(float, buckets), math.inf)
        self._bound_names = [floatToGoString(bound) for bound in self._bounds]
        self._children: dict[tuple[str, ...], Observations] = {}
        self._lock = threading.Lock()
        """Of what is counted."""
        registry.register(self)

    def labels(self, *values: str) -> Observations:
        """The observations with these values of the labels."""
        child = self._children.get(values)
        if child is None:
            child = self._children.setdefault(values, Observations(self._bounds))
        return child

    def count(self) -> None:
        """Count what was gathered. From any thread."""
        with self._lock:
            for child in tuple(self._children.values()):
                child.count()

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """See prometheus_client's Collector."""
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._label_names)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See prometheus_client's Collector."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._label_names)
        with self._lock:
            for values, child in tuple(self._children.items()):
                child.count()
                below = 0
                buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
                for name, count, exemplar in zip(self._bound_names, child.counts, child.exemplars, strict=True):
                    below += count
                    buckets.append((name, float(below)) if exemplar is None else (name, float(below), exemplar))
                family.add_metric(values, buckets, child.total)
        yield family
