"""Overlays: a picture with its answer drawn on it.

Line widths and letters grow with the picture. A class has the same colour everywhere; text stands on a plate of
that colour, black or white, whichever reads better there. Instance masks are pasted one at a time.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from model.postprocess.masks import paste
from model.types import (
    Box,
    ClassifyResult,
    Detection,
    DetectResult,
    Image,
    Label,
    LabelMapArray,
    Result,
    SegmentResult,
    Size,
    UInt8Array,
)

MAX_OVERLAY_PIXELS: Final = 16 * 10**6
MAX_OVERLAY_SIDE: Final = 16_383
"""The longest side that WebP can have. Larger pictures are drawn scaled down."""

BACKGROUND: Final = "background"
"""A class of this name is what is left over: it is not tinted."""

MASK_OPACITY: Final = 0.45
PANEL_SHADE: Final = 0.3
MAX_ROWS: Final = 20
STRIP_PIXELS: Final = 1 << 20

Colour = tuple[int, int, int]
Draw = PIL.ImageDraw.ImageDraw


class PictureFormat(StrEnum):
    """Named by the extension that OpenCV's encoders know."""

    PNG = ".png"
    JPEG = ".jpg"
    WEBP = ".webp"


ENCODER_OPTIONS: Final[dict[PictureFormat, Sequence[int]]] = {
    PictureFormat.PNG: (),
    PictureFormat.JPEG: (cv2.IMWRITE_JPEG_QUALITY, 90),
    PictureFormat.WEBP: (cv2.IMWRITE_WEBP_QUALITY, 90),
}


def render(image: Image, result: Result) -> Image:
    """The picture with labels, boxes and masks, or tinted segments; scaled down where it is very large."""
    pixels, scale = _canvas(image)
    style = Style.of(Size(pixels.shape[0], pixels.shape[1]))
    match result:
        case ClassifyResult():
            return _with_labels(pixels, result.labels, style)
        case DetectResult():
            return _with_detections(pixels, result.detections, scale, style)
        case SegmentResult():
            return _with_segments(pixels, result, style)


def encode_picture(image: Image, picture_format: PictureFormat) -> bytes:
    """Encoded without metadata; JPEG and WebP at quality 90."""
    return _encoded(np.asarray(cv2.cvtColor(image.pixels, cv2.COLOR_RGB2BGR), np.uint8), picture_format)


def encode_label_map(label_map: LabelMapArray) -> bytes:
    """A grey PNG whose values are the class indices: 8 bit for uint8, 16 bit for uint16."""
    return _encoded(label_map, PictureFormat.PNG)


def colour_of(index: int) -> Colour:
    """RGB of a class: hues a golden angle apart, so that neighbouring indices differ most, in three brightnesses."""
    hue = (index * 0.618033988749895 + 0.02) % 1.0
    saturation, value = ((0.85, 1.0), (0.65, 0.85), (1.0, 0.7))[index // 7 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True, slots=True)
class Style:
    """Sizes in pixels of the canvas."""

    line: int
    pad: int
    font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont

    @classmethod
    def of(cls, size: Size) -> Style:
        side = math.sqrt(size.height * size.width)
        letters = min(max(round(side / 28), 12), 96)
        return cls(line=max(2, round(side / 250)), pad=max(2, letters // 4), font=PIL.ImageFont.load_default(letters))


def _canvas(image: Image) -> tuple[UInt8Array, float]:
    """A copy to draw on, and how much smaller it is than the picture."""
    height, width = image.size.height, image.size.width
    scale = min(1.0, math.sqrt(MAX_OVERLAY_PIXELS / (height * width)), MAX_OVERLAY_SIDE / max(height, width))
    if scale == 1.0:
        return image.pixels.copy(), 1.0
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return np.asarray(cv2.resize(image.pixels, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def _with_labels(pixels: UInt8Array, labels: Sequence[Label], style: Style) -> Image:
    rows = [(f"{label.label}  {label.score:.1%}", colour_of(label.index)) for label in labels]
    return _with_panel(pixels, rows, style)


def _with_detections(pixels: UInt8Array, detections: Sequence[Detection], scale: float, style: Style) -> Image:
    # The best come last and so lie on top.
    for detection in reversed(detections):
        if detection.mask is not None:
            size = Size(pixels.shape[0], pixels.shape[1])
            region = paste(detection.mask, _scaled(detection.box, scale), size)
            _tint(pixels, region.left, region.top, region.pixels, colour_of(detection.index))
    picture = PIL.Image.fromarray(pixels)
    draw = PIL.ImageDraw.Draw(picture)
    for detection in reversed(detections):
        box, colour = _scaled(detection.box, scale), colour_of(detection.index)
        draw.rectangle((box.xmin, box.ymin, box.xmax, box.ymax), outline=colour, width=style.line)
    for detection in reversed(detections):
        _tag(draw, picture.size, detection, _scaled(detection.box, scale), style)
    return Image(np.array(picture))


def _with_segments(pixels: UInt8Array, result: SegmentResult, style: Style) -> Image:
    height, width, _ = pixels.shape
    label_map: LabelMapArray = result.label_map
    if label_map.shape != (height, width):
        # A view on a row and a column in so many: the nearest neighbour, without another large array's rounding.
        rows = np.arange(height) * label_map.shape[0] // height
        columns = np.arange(width) * label_map.shape[1] // width
        label_map = label_map[rows[:, None], columns]
    shown = [segment for segment in result.segments if segment.label != BACKGROUND]
    colours = np.zeros((int(label_map.max()) + 1, 3), np.uint8)
    tinted = np.zeros(len(colours), np.bool_)
    for segment in shown:
        if segment.index < len(colours):  # a sliver may be lost in scaling down
            colours[segment.index] = colour_of(segment.index)
            tinted[segment.index] = True
    step = max(1, STRIP_PIXELS // width)
    for top in range(0, height, step):  # an index array of the whole picture would be ten times the picture
        strip, labels = pixels[top : top + step], label_map[top : top + step]
        mixed = cv2.addWeighted(strip, 1 - MASK_OPACITY, colours[labels], MASK_OPACITY, 0)
        np.copyto(strip, mixed, where=tinted[labels][..., None])
    pixels[_borders(label_map, style.line)] = 255
    area = result.size.height * result.size.width
    rows_of_panel = [(f"{segment.label}  {segment.area / area:.1%}", colour_of(segment.index)) for segment in shown]
    return _with_panel(pixels, rows_of_panel, style)


def _borders(label_map: LabelMapArray, line: int) -> npt.NDArray[np.bool_]:
    """Where a pixel has a neighbour of another class, as wide as a thin line."""
    kernel = np.ones((max(2, line // 2 + 1),) * 2, np.uint8)
    return np.asarray(cv2.dilate(label_map, kernel) != cv2.erode(label_map, kernel))


def _tint(pixels: UInt8Array, left: int, top: int, inside: npt.NDArray[np.bool_], colour: Colour) -> None:
    if not inside.size:
        return
    height, width = inside.shape
    region = pixels[top : top + height, left : left + width]
    levels = np.arange(256)[:, None] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY
    mixed = cv2.LUT(region, levels.astype(np.uint8)[None])
    np.copyto(region, mixed, where=inside[..., None])


def _with_panel(pixels: UInt8Array, rows: Sequence[tuple[str, Colour]], style: Style) -> Image:
    """Lines of text, each after a swatch of its colour, on a darkened panel at the top left."""
    height, width, _ = pixels.shape
    _, _, _, letter_height = style.font.getbbox("Ag")
    step = math.ceil(letter_height) + style.pad
    room = max(1, min(MAX_ROWS, (height - 3 * style.pad) // step))
    rows = rows[:room]
    if not rows:
        return Image(pixels)
    swatch = step - style.pad
    texts = [_fitted(text, width - 6 * style.pad - swatch, style) for text, _ in rows]
    panel_width = math.ceil(max(style.font.getlength(text) for text in texts)) + swatch + 4 * style.pad
    panel = pixels[style.pad : 3 * style.pad + step * len(rows), style.pad : style.pad + panel_width]
    if panel.size:
        panel[:] = cv2.convertScaleAbs(panel, alpha=PANEL_SHADE)
    picture = PIL.Image.fromarray(pixels)
    draw = PIL.ImageDraw.Draw(picture)
    for at, (text, (_, colour)) in enumerate(zip(texts, rows, strict=True)):
        x, y = 2 * style.pad, 2 * style.pad + at * step
        draw.rectangle((x, y, x + swatch - 1, y + swatch - 1), fill=colour)
        draw.text((x + swatch + style.pad, y), text, fill=(255, 255, 255), font=style.font)
    return Image(np.array(picture))


def _tag(draw: Draw, canvas: tuple[int, int], detection: Detection, box: Box, style: Style) -> None:
    """Label and score on a plate at the box's top left corner, moved so that it stays within the picture."""
    width, height = canvas
    colour = colour_of(detection.index)
    text = _fitted(f"{detection.label} {detection.score:.2f}", width - 2 * style.pad, style)
    _, _, _, letter_height = style.font.getbbox("Ag")
    plate_width = math.ceil(style.font.getlength(text)) + 2 * style.pad
    plate_height = math.ceil(letter_height) + style.pad
    x = max(0.0, min(box.xmin, width - plate_width))
    above = box.ymin - plate_height
    y = above if above >= 0 else max(0.0, min(box.ymin, height - plate_height))
    draw.rectangle((x, y, x + plate_width, y + plate_height), fill=colour)
    draw.text((x + style.pad, y + style.pad // 2), text, fill=_readable_on(colour), font=style.font)


def _readable_on(colour: Colour) -> Colour:
    """Black or white, by the background's relative luminance (WCAG 2, with gamma 2.2 for the sRGB curve)."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # Equal contrast with both is at sqrt(1.05 x 0.05) - 0.05.
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _fitted(text: str, width: float, style: Style) -> str:
    if style.font.getlength(text) <= width:
        return text
    while len(text) > 1 and style.font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _scaled(box: Box, scale: float) -> Box:
    return Box(box.xmin * scale, box.ymin * scale, box.xmax * scale, box.ymax * scale)


def _encoded(pixels: LabelMapArray, picture_format: PictureFormat) -> bytes:
    done, data = cv2.imencode(picture_format, pixels, list(ENCODER_OPTIONS[picture_format]))
    if not done:
        raise RuntimeError(f"{pixels.shape} {pixels.dtype} could not be encoded as {picture_format.name}")
    return data.tobytes()
