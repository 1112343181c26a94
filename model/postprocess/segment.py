from __future__ import annotations

import cv2
import numpy as np

from model.types import Segment, SegmentOutput, SegmentResult, Size

STRIP_PIXELS = 1 << 24
"""OpenCV counts in float32, which is exact up to here."""


def name_segments(raw: SegmentOutput, labels: tuple[str, ...], size: Size) -> SegmentResult:
    """One segment for each class that has a pixel, by falling area; equal areas by rising class index."""
    areas = np.zeros(len(labels), np.int64)
    strip = max(STRIP_PIXELS // size.width, 1)
    for row in range(0, size.height, strip):
        counts = cv2.calcHist([raw.label_map[row : row + strip]], [0], None, [len(labels)], [0, len(labels)])
        areas += counts.ravel().astype(np.int64)
    order = [index for index in np.argsort(-areas, kind="stable").tolist() if areas[index]]
    segments = tuple(Segment(labels[index], index, int(areas[index])) for index in order)
    return SegmentResult(size, raw.label_map, segments)
