"""A batch of pictures of one shape, and the comparison of its outputs."""

from __future__ import annotations

import numpy as np
import pytest

from model.types import (
    ClassifyOutput,
    DetectOutput,
    Geometry,
    LabelMapArray,
    QueryParams,
    RawOutput,
    SegmentOutput,
    Size,
    UInt8Array,
)

PLAIN = QueryParams()
HEIGHT, WIDTH = 96, 128
GEOMETRIES: tuple[Geometry, ...] = (
    Geometry(Size(200, 270), Size(95, 128)),
    Geometry(Size(64, 80), Size(96, 120)),
    Geometry(Size(300, 400), Size(96, 128)),
    Geometry(Size(70, 100), Size(90, 128)),
)
PARAMS: tuple[QueryParams, ...] = (
    QueryParams(top_k=2, max_detections=7),
    QueryParams(score_threshold=0.0, max_detections=40),
    QueryParams(top_k=1, score_threshold=0.7, masks=False),
    QueryParams(top_k=50),
)


def pictures(seed: int = 1) -> UInt8Array:
    """Smooth random pictures, zero in the padding."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (len(GEOMETRIES), HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    pixels = np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2))
    for row, geometry in enumerate(GEOMETRIES):
        pixels[row, geometry.content.height :] = 0
        pixels[row, :, geometry.content.width :] = 0
    return pixels


def assert_close(one: RawOutput, other: RawOutput) -> None:
    """Equal except for float32's rounding, which may differ with the batch size."""
    match one, other:
        case ClassifyOutput(), ClassifyOutput():
            np.testing.assert_array_equal(one.indices, other.indices)
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        case DetectOutput(), DetectOutput():
            np.testing.assert_array_equal(one.classes, other.classes)
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
            np.testing.assert_allclose(one.boxes, other.boxes, atol=0.05)
            assert (one.mask_logits is None) == (other.mask_logits is None)
            if one.mask_logits is not None and other.mask_logits is not None:
                assert one.mask_logits.shape == (len(one.boxes), 28, 28)
                np.testing.assert_allclose(one.mask_logits, other.mask_logits, atol=0.02)
        case SegmentOutput(), SegmentOutput():
            assert (one.label_map != other.label_map).sum() <= 2
        case _:
            pytest.fail(f"{one} is no {type(other).__name__}")


def segment_output(label_map: LabelMapArray, classes: int, params: QueryParams = PLAIN) -> SegmentOutput:
    """A network's output for this label map, in which class i has confidence 0.9 / (i + 1)."""
    areas = np.bincount(label_map.ravel(), minlength=classes)
    confidences = np.where(areas > 0, 0.9 / np.arange(1, len(areas) + 1), 0).astype(np.float32)
    wanted = areas >= params.min_area
    if params.classes is not None:
        wanted &= np.isin(np.arange(len(areas)), params.classes)
    levels = np.round(255 * confidences[label_map]).astype(np.uint8) if params.confidence_map else None
    return SegmentOutput(label_map, np.where(wanted, areas, 0), confidences, levels)
