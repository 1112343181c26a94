from __future__ import annotations

import numpy as np

from model.types import Segment, SegmentOutput, SegmentResult, Size

STRIP_ROWS = 256
"""Counting widens each pixel to eight bytes, so it is done for so many rows at a time."""


def name_segments(raw: SegmentOutput, labels: tuple[str, ...], size: Size) -> SegmentResult:
    """One segment for each class that has a pixel, by falling area; equal areas by rising class index."""
    areas = np.zeros(len(labels), np.int64)
    for row in range(0, size.height, STRIP_ROWS):
        areas += np.bincount(raw.label_map[row : row + STRIP_ROWS].ravel(), minlength=len(labels))
    order = [index for index in np.argsort(-areas, kind="stable").tolist() if areas[index]]
    segments = tuple(Segment(labels[index], index, int(areas[index])) for index in order)
    return SegmentResult(size, raw.label_map, segments)
