"""Two models' results for the same pictures: how far they differ, where most, and whose are nearer to the truth."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from convmlp_client.results import Classification, Detections, Result, Segmentation
from model.metrics import matched_boxes
from model.types import IntArray, Task
from service.evaluation.dataset import ClassTruth, Sample
from service.evaluation.figures import scored_boxes

FIRST, SECOND = "A", "B"
LISTED_LABELS = 5
"""Labels of each model whose scores are compared."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of the summary: a count, or a fraction of 1."""

    name: str
    value: float

    @property
    def text(self) -> str:
        return str(self.value) if isinstance(self.value, int) else f"{self.value:.4f}"


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one picture. `agrees`: the best label is the same, all boxes match, or all pixels do. `degree` orders
    pictures, 0 where nothing differs; `facts` has it in words."""

    agrees: bool
    degree: float
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComparedPicture:
    """A picture whose results differ. `errors`: of each result against the truth, if there is one: wrong or not, missed
    and false boxes, or the share of wrong pixels."""

    sample: Sample
    first: Result
    second: Result
    difference: Difference
    errors: tuple[float, float] | None

    @property
    def truth(self) -> str:
        """The truth of a classifier's picture; of others it has no short words."""
        truth = self.sample.truth
        return ", ".join(truth.labels) if isinstance(truth, ClassTruth) else ""

    @property
    def nearer(self) -> str:
        """Which result is nearer to the truth, in words; empty without a truth."""
        if self.errors is None:
            return ""
        first, second = self.errors
        if first == second:
            return "both are right" if first == 0 else "both are equally wrong"
        return f"{FIRST if first < second else SECOND} is nearer to the truth"


class ClassKeys:
    """Identifies classes in both models: by index if they have the same labels, else by name."""

    def __init__(self, first: Sequence[str], second: Sequence[str]) -> None:
        self._same = tuple(first) == tuple(second)
        self.labels = tuple(dict.fromkeys((*first, *second)))
        self._position = {label: at for at, label in enumerate(self.labels)}
        self._classes = max(len(first), len(second))

    def key(self, index: int, label: str) -> int:
        return index if self._same else self._position[label]

    @property
    def size(self) -> int:
        return self._classes if self._same else len(self.labels)

    def positions(self, labels: Sequence[str]) -> IntArray:
        """The key of each class index of a model."""
        return np.array([self.key(index, label) for index, label in enumerate(labels)], np.int64)


class Comparison(ABC):
    """Collects the differences of one task; `add` for each picture, then `metrics`."""

    def __init__(self, keys: ClassKeys) -> None:
        self.keys = keys
        self.pictures = 0

    def add(self, first: Result, second: Result) -> Difference:
        self.pictures += 1
        return self._difference(first, second)

    @abstractmethod
    def _difference(self, first: Result, second: Result) -> Difference: ...

    @abstractmethod
    def metrics(self) -> list[Metric]:
        """Of all pictures so far."""


class ClassificationComparison(Comparison):
    """Top-1 agreement; and how far the scores of both models' best five labels differ."""

    def __init__(self, keys: ClassKeys) -> None:
        super().__init__(keys)
        self._agreeing = 0
        self._differences: list[float] = []
        self._largest = 0.0

    def _difference(self, first: Result, second: Result) -> Difference:
        assert isinstance(first, Classification)
        assert isinstance(second, Classification)
        scores = [
            {self.keys.key(one.index, one.label): one.score for one in result.labels} for result in (first, second)
        ]
        best = [next(iter(of_one), None) for of_one in scores]
        compared = {
            key: abs(scores[0].get(key, 0.0) - scores[1].get(key, 0.0))
            for of_one in scores
            for key in list(of_one)[:LISTED_LABELS]
        }
        largest = max(compared.values(), default=0.0)
        top = [compared[key] for key in dict.fromkeys(best) if key is not None]
        self._differences.append(max(top, default=0.0))
        self._largest = max(self._largest, largest)
        agrees = best[0] == best[1]
        self._agreeing += agrees
        words = [
            f"{result.labels[0].label} {result.labels[0].score:.3f}" if result.labels else "no label"
            for result in (first, second)
        ]
        facts = () if agrees else (f"the best label is {words[0]} in {FIRST}, {words[1]} in {SECOND}",)
        return Difference(agrees, (not agrees) + largest, (*facts, f"scores differ by up to {largest:.3f}"))

    def metrics(self) -> list[Metric]:
        return [
            Metric("top-1 agreement", self._agreeing / max(self.pictures, 1)),
            Metric("mean score difference of the best labels", float(np.mean(self._differences or [0.0]))),
            Metric("largest score difference", self._largest),
        ]


class DetectionComparison(Comparison):
    """Boxes of one class that match at IoU 0.5, and those of one model only."""

    def __init__(self, keys: ClassKeys) -> None:
        super().__init__(keys)
        self._only = [0, 0]
        self._scores: list[float] = []
        self._overlaps: list[float] = []

    def _difference(self, first: Result, second: Result) -> Difference:
        assert isinstance(first, Detections)
        assert isinstance(second, Detections)
        found, other = (
            [
                replace(box, index=self.keys.key(one.index, one.label))
                for one, box in zip(result.detections, scored_boxes(result), strict=True)
            ]
            for result in (first, second)
        )
        pairs = matched_boxes(found, other)
        scores = [abs(found[at].score - other[to].score) for at, to, _ in pairs]
        self._scores += scores
        self._overlaps += [overlap for _, _, overlap in pairs]
        only = (len(found) - len(pairs), len(other) - len(pairs))
        self._only = [total + more for total, more in zip(self._only, only, strict=True)]
        largest = max(scores, default=0.0)
        least = min((overlap for _, _, overlap in pairs), default=1.0)
        facts = [
            f"boxes only in {name}: {number} of {len(of_one)}"
            for number, of_one, name in zip(only, (found, other), (FIRST, SECOND), strict=True)
            if number
        ]
        if pairs:
            facts.append(
                f"matched boxes: {len(pairs)}, scores differ by up to {largest:.3f}, the IoU is at least {least:.3f}"
            )
        return Difference(not any(only), sum(only) + max(largest, 1 - least), tuple(facts))

    def metrics(self) -> list[Metric]:
        return [
            Metric("boxes matched at IoU 0.5", len(self._overlaps)),
            *(
                Metric(f"boxes only in {name}", number)
                for name, number in zip((FIRST, SECOND), self._only, strict=True)
            ),
            Metric("mean IoU of matched boxes", float(np.mean(self._overlaps or [1.0]))),
            Metric("mean score difference of matched boxes", float(np.mean(self._scores or [0.0]))),
            Metric("largest score difference of matched boxes", max(self._scores, default=0.0)),
        ]


class SegmentationComparison(Comparison):
    """Pixels of the same class, over all pictures; and the IoU of each class between both models."""

    def __init__(self, keys: ClassKeys, first: Sequence[str], second: Sequence[str]) -> None:
        super().__init__(keys)
        self._positions = keys.positions(first), keys.positions(second)
        self._both = np.zeros(keys.size, np.int64)
        self._either = np.zeros(keys.size, np.int64)
        self._pixels = 0
        self._most = 0.0

    def _difference(self, first: Result, second: Result) -> Difference:
        assert isinstance(first, Segmentation)
        assert isinstance(second, Segmentation)
        maps = [
            positions[result.label_map()] for positions, result in zip(self._positions, (first, second), strict=True)
        ]
        equal = maps[0] == maps[1]
        both = np.bincount(maps[0][equal], minlength=self.keys.size)
        each = [np.bincount(one.ravel(), minlength=self.keys.size) for one in maps]
        self._both += both
        self._either += each[0] + each[1] - both
        self._pixels += equal.size
        share = float(1 - equal.mean())
        self._most = max(self._most, share)
        return Difference(not share, share, (f"{share:.2%} of the pixels differ",))

    def metrics(self) -> list[Metric]:
        present = self._either > 0
        overlaps = self._both[present] / self._either[present]
        return [
            Metric("pixels that agree", float(self._both.sum() / max(self._pixels, 1))),
            Metric("mean IoU of the classes of both", float(overlaps.mean()) if overlaps.size else 1.0),
            Metric("largest share of a picture's pixels that differ", self._most),
        ]


def comparison_for(task: Task, first: Sequence[str], second: Sequence[str]) -> Comparison:
    """The comparison of two models of a task, given their labels."""
    keys = ClassKeys(first, second)
    match task:
        case Task.CLASSIFY:
            return ClassificationComparison(keys)
        case Task.DETECT:
            return DetectionComparison(keys)
        case Task.SEGMENT:
            return SegmentationComparison(keys, first, second)


@dataclass(slots=True)
class Summary:
    """The pictures that differ most, at most `limit`; how many do not agree, and whose results of these are nearer to
    the truth; and why pictures have no results."""

    limit: int
    differing: int = 0
    nearer: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    _worst: list[tuple[float, int, ComparedPicture]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=lambda: count(0, -1))

    def add(self, picture: ComparedPicture) -> None:
        if not picture.difference.agrees:
            self.differing += 1
            if picture.nearer:
                self.nearer[picture.nearer] = self.nearer.get(picture.nearer, 0) + 1
        if picture.difference.degree <= 0:
            return
        entry = (picture.difference.degree, next(self._numbers), picture)  # of equal ones the earlier stays
        if len(self._worst) < self.limit:
            heapq.heappush(self._worst, entry)
        else:
            heapq.heappushpop(self._worst, entry)

    @property
    def worst(self) -> list[ComparedPicture]:
        """By falling difference."""
        return [picture for _, _, picture in sorted(self._worst, key=lambda entry: entry[:2], reverse=True)]
