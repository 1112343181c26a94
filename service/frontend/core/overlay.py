"""Overlays: a picture with its result drawn on it, in the client's style; and encoding of pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import numpy as np
import PIL.Image

from convmlp_client.drawing import draw_detections, draw_labels, draw_segments, draw_tags, panel_tops
from model.png import png_bytes
from model.postprocess.masks import RegionMask, paste_mask
from model.types import (
    Box,
    ClassifyResult,
    Detection,
    DetectResult,
    Image,
    LabelMapArray,
    Result,
    SegmentResult,
    Size,
)

MAX_OVERLAY_PIXELS: Final = 16 * 10**6
MAX_OVERLAY_SIDE: Final = 16_383
"""The longest side that WebP can have. Larger pictures are drawn scaled down."""


class PictureFormat(StrEnum):
    """Values are Pillow's names."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"


QUALITY: Final = 90
"""Of JPEG and WebP."""


def render(image: Image, *results: Result) -> Image:
    """The picture with labels, boxes and masks, or tinted segments, or all of them; scaled down where it is very large.

    Instance masks are pasted one at a time.
    """
    canvas = scaled_down(image)
    size = canvas.size
    # From the longer side, where rounding to whole pixels matters least.
    scale = max(size.height / image.size.height, size.width / image.size.width)
    picture = PIL.Image.fromarray(canvas.pixels)

    def region_of(detection: Detection) -> RegionMask | None:
        return None if detection.mask is None else paste_mask(detection.mask, _scaled(detection.box, scale), size)

    classified = [result for result in results if isinstance(result, ClassifyResult)]
    segmented = [result for result in results if isinstance(result, SegmentResult)]
    label_tops, segment_tops = panel_tops(
        picture.size, [result.labels for result in classified], [result.segments for result in segmented]
    )
    panels = []
    for segmentation, top in zip(segmented, segment_tops, strict=True):
        values = [segment.index for segment in segmentation.segments]
        label_map = _sampled(segmentation.label_map, size)
        area = segmentation.label_map.size
        palette = segmentation.palette
        panels.append(draw_segments(picture, segmentation.segments, label_map, values, area, top, palette))
    detected = [result for result in results if isinstance(result, DetectResult)]
    for detection in detected:
        draw_detections(picture, detection.detections, region_of, scale, detection.palette)
    for classification, top in zip(classified, label_tops, strict=True):
        panels.append(draw_labels(picture, classification.labels, top, classification.palette))
    for detection in detected:
        draw_tags(picture, detection.detections, panels, scale, detection.palette)
    return Image(np.array(picture))


def scaled_down(image: Image) -> Image:
    """The picture itself, or a smaller one where it is larger than an overlay may be."""
    height, width = image.size.height, image.size.width
    scale = min(1.0, math.sqrt(MAX_OVERLAY_PIXELS / (height * width)), MAX_OVERLAY_SIDE / max(height, width))
    if scale == 1.0:
        return image
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return Image(np.asarray(PIL.Image.fromarray(image.pixels).resize(size, PIL.Image.Resampling.BOX)))


def encode_picture(image: Image, picture_format: PictureFormat) -> bytes:
    """Encoded without metadata; JPEG and WebP at quality 90."""
    if picture_format is PictureFormat.PNG:
        return png_bytes(image.pixels)
    return _saved(PIL.Image.fromarray(image.pixels), picture_format, quality=QUALITY)


def encode_label_map(label_map: LabelMapArray) -> bytes:
    """A grey PNG whose values are the class indices, or confidences: 8 bit for uint8, 16 bit for uint16."""
    return png_bytes(label_map)


def encode_class_colours(label_map: LabelMapArray, colours: Mapping[int, tuple[int, int, int]]) -> bytes:
    """A PNG of a label map in colours, which are by class index; classes without one are black.

    Up to 256 classes its pixels are the class indices, and the colours are its palette. Beyond, it has no palette: RGB.
    """
    table = np.zeros((int(np.iinfo(label_map.dtype).max) + 1, 3), np.uint8)
    table[list(colours)] = list(colours.values())
    if label_map.dtype != np.uint8:
        return encode_picture(Image(table[label_map]), PictureFormat.PNG)
    picture = PIL.Image.fromarray(label_map)
    picture.putpalette(table.tobytes())
    return _saved(picture, PictureFormat.PNG)


def _scaled(box: Box, scale: float) -> Box:
    return Box(box.xmin * scale, box.ymin * scale, box.xmax * scale, box.ymax * scale)


def _sampled(label_map: LabelMapArray, size: Size) -> LabelMapArray:
    """The label map at another size, by the nearest neighbour."""
    if label_map.shape == (size.height, size.width):
        return label_map
    rows = np.arange(size.height) * label_map.shape[0] // size.height
    columns = np.arange(size.width) * label_map.shape[1] // size.width
    sampled: LabelMapArray = label_map[rows[:, None], columns]
    return sampled


def _saved(picture: PIL.Image.Image, picture_format: PictureFormat, **options: Any) -> bytes:  # noqa: ANN401
    content = io.BytesIO()
    picture.save(content, picture_format, **options)
    return content.getvalue()
