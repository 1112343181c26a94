"""Greedy matching of boxes of one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from convmlp_client.geometry import Box
from model.reference import iou
from model.types import Box as ModelBox

MIN_IOU = 0.5


@dataclass(frozen=True, slots=True)
class ScoredObject:
    """A box of a class."""

    key: int
    score: float
    box: Box | ModelBox


def matched_objects(found: Sequence[ScoredObject], others: Sequence[ScoredObject]) -> list[tuple[int, int, float]]:
    """Pairs of one class with an IoU of at least MIN_IOU, as positions in both and the IoU.

    In the order of `found`, each takes the other that overlaps it most and is not taken yet.
    """
    pairs: list[tuple[int, int, float]] = []
    taken: set[int] = set()
    for at, one in enumerate(found):
        overlaps = {
            to: iou(_box(one.box), _box(other.box))
            for to, other in enumerate(others)
            if to not in taken and other.key == one.key
        }
        best = max(overlaps, key=overlaps.__getitem__, default=None)
        if best is not None and overlaps[best] >= MIN_IOU:
            taken.add(best)
            pairs.append((at, best, overlaps[best]))
    return pairs


def _box(box: Box | ModelBox) -> ModelBox:
    return ModelBox(box.xmin, box.ymin, box.xmax, box.ymax)
