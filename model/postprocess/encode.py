"""Masks in the formats that a caller may ask for. Each is made when it is asked for, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

import cv2
import numpy as np

from model.postprocess.masks import RegionMask, paste
from model.postprocess.rle import RLE, encode_rle, encode_segments_rle
from model.types import BoolArray, Detection, IntArray, SegmentResult, Size

Polygons = list[list[int]]


class MaskFormat(StrEnum):
    """`rle`: COCO's compressed run lengths; `png`: 8-bit grey, 0 or 255; `polygon`: outlines; `none`: no mask."""

    RLE = "rle"
    PNG = "png"
    POLYGON = "polygon"
    NONE = "none"


EncodedMask = RLE | bytes | Polygons | None


def encode_mask(mask: RegionMask, mask_format: MaskFormat) -> EncodedMask:
    match mask_format:
        case MaskFormat.RLE:
            return encode_rle(mask)
        case MaskFormat.PNG:
            return encode_png(mask)
        case MaskFormat.POLYGON:
            return encode_polygons(mask)
        case MaskFormat.NONE:
            return None


def encode_detection(detection: Detection, size: Size, mask_format: MaskFormat) -> EncodedMask:
    """A detection's mask in a picture of `size`; None where it has none or none is asked for."""
    if detection.mask is None or mask_format is MaskFormat.NONE:
        return None
    return encode_mask(paste(detection.mask, detection.box, size), mask_format)


def encode_segments(result: SegmentResult, mask_format: MaskFormat) -> Iterator[EncodedMask]:
    """The segments' masks, in their order."""
    match mask_format:
        case MaskFormat.RLE:
            yield from encode_segments_rle(result)
        case MaskFormat.NONE:
            yield from [None] * len(result.segments)
        case MaskFormat.PNG:
            for segment in result.segments:
                yield _png(result.label_map == segment.index)
        case MaskFormat.POLYGON:
            for segment in result.segments:
                yield encode_polygons(RegionMask(0, 0, result.label_map == segment.index, result.size))


def encode_png(mask: RegionMask) -> bytes:
    """An 8-bit grey PNG of the whole picture: 255 where the mask is set, else 0."""
    return _png(mask.in_picture())


def _png(mask: BoolArray) -> bytes:
    _, png = cv2.imencode(".png", mask.view(np.uint8) * np.uint8(255))
    return png.tobytes()


def encode_polygons(mask: RegionMask) -> Polygons:
    """The outlines of the mask's connected parts, each [x0, y0, x1, y1, ...], in pixels of the picture.

    An outline runs along the edges of the outermost pixels, in the frame of the boxes: pixel (column, row) spans
    column to column + 1. So even a single pixel is a square, and filling the polygons gives back the mask with
    its holes closed; holes are not told.
    """
    rows, columns = np.flatnonzero(mask.pixels.any(axis=1)), np.flatnonzero(mask.pixels.any(axis=0))
    if not len(rows):
        return []
    pixels = mask.pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # OpenCV's contours join the centres of border pixels. At twice the size the border pixels of an original
    # pixel's left and right halves are told apart, and their edges found by rounding.
    doubled = cv2.resize(pixels.view(np.uint8), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    origin = np.array((mask.left + columns[0], mask.top + rows[0]))
    return [_corners((contour[:, 0] + 1) // 2 + origin) for contour in contours]


def _corners(outline: IntArray) -> list[int]:
    """The outline's points, int (n, 2), each once where it comes several times in a row."""
    new = (outline != np.roll(outline, 1, axis=0)).any(axis=1)
    corners: list[int] = outline[new].ravel().tolist()
    return corners


def rounded_score(score: float) -> float:
    """A score with six significant digits, as JSON carries it."""
    return float(f"{score:.6g}")
