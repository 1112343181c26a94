"""Overlays: a picture with its answer drawn on it, in place, by Pillow alone.

What is drawn is told by protocols, so that the server draws its own results with the same functions.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from convmlp_client.geometry import BoolArray

PANEL_SHADE: Final = 0.3
MAX_ROWS: Final = 20

Colour = tuple[int, int, int]


def colour_of(index: int) -> Colour:
    """RGB of a class: hues a golden angle apart, so that neighbouring indices differ most, in three brightnesses."""
    hue = (index * 0.618033988749895 + 0.02) % 1.0
    saturation, value = ((0.85, 1.0), (0.65, 0.85), (1.0, 0.7))[index // 7 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True, slots=True)
class Style:
    """Sizes in pixels of the picture; they grow with it."""

    line: int
    pad: int
    font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont

    @classmethod
    def of(cls, width: int, height: int) -> Style:
        side = math.sqrt(height * width)
        letters = min(max(round(side / 28), 12), 96)
        return cls(line=max(2, round(side / 250)), pad=max(2, letters // 4), font=PIL.ImageFont.load_default(letters))

    @property
    def letter_height(self) -> int:
        _, _, _, bottom = self.font.getbbox("Ag")
        return math.ceil(bottom)

    def fitted(self, text: str, width: float) -> str:
        """`text`, cut so that it is not wider; one letter always stays."""
        if self.font.getlength(text) <= width:
            return text
        while len(text) > 1 and self.font.getlength(f"{text}…") > width:
            text = text[:-1]
        return f"{text}…"


def draw_panel(picture: PIL.Image.Image, rows: Sequence[tuple[str, Colour]], style: Style) -> None:
    """Lines of text, each after a swatch of its colour, on a darkened panel at the top left."""
    width, height = picture.size
    swatch = style.letter_height
    step = swatch + style.pad
    room = max(1, min(MAX_ROWS, (height - 3 * style.pad) // step))
    rows = rows[:room]
    if not rows:
        return
    texts = [style.fitted(text, width - 6 * style.pad - swatch) for text, _ in rows]
    panel_width = math.ceil(max(style.font.getlength(text) for text in texts)) + swatch + 4 * style.pad
    right, bottom = min(width, style.pad + panel_width), min(height, 3 * style.pad + step * len(rows))
    if style.pad < right and style.pad < bottom:
        panel = (style.pad, style.pad, right, bottom)
        picture.paste(picture.crop(panel).point(lambda level: level * PANEL_SHADE), panel)
    draw = PIL.ImageDraw.Draw(picture)
    for at, (text, (_, colour)) in enumerate(zip(texts, rows, strict=True)):
        x, y = 2 * style.pad, 2 * style.pad + at * step
        draw.rectangle((x, y, x + swatch - 1, y + swatch - 1), fill=colour)
        draw.text((x + swatch + style.pad, y), text, fill=(255, 255, 255), font=style.font)


def draw_tag(picture: PIL.Image.Image, text: str, colour: Colour, x: float, y: float, style: Style) -> None:
    """`text` on a plate above the point, below it where there is no room, and always within the picture."""
    width, height = picture.size
    text = style.fitted(text, width - 2 * style.pad)
    plate_width = math.ceil(style.font.getlength(text)) + 2 * style.pad
    plate_height = style.letter_height + style.pad
    x = max(0.0, min(x, width - plate_width))
    above = y - plate_height
    y = above if above >= 0 else max(0.0, min(y, height - plate_height))
    draw = PIL.ImageDraw.Draw(picture)
    draw.rectangle((x, y, x + plate_width, y + plate_height), fill=colour)
    draw.text((x + style.pad, y + style.pad // 2), text, fill=_readable_on(colour), font=style.font)


def _readable_on(colour: Colour) -> Colour:
    """Black or white, by the background's relative luminance (WCAG 2, with gamma 2.2 for the sRGB curve)."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # Equal contrast with both is at sqrt(1.05 x 0.05) - 0.05.
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


BACKGROUND: Final = "background"
"""A class of this name is what is left over: it is not tinted."""

MASK_OPACITY: Final = 115
"""Of 255."""

STRIP_PIXELS: Final = 1 << 20
PALETTE: Final = 255

LabelMap = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class Named(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def index(self) -> int: ...


class Scored(Named, Protocol):
    @property
    def score(self) -> float: ...


class Sized(Named, Protocol):
    @property
    def area(self) -> int: ...


class Rectangle(Protocol):
    @property
    def xmin(self) -> float: ...
    @property
    def ymin(self) -> float: ...
    @property
    def xmax(self) -> float: ...
    @property
    def ymax(self) -> float: ...


class Boxed(Scored, Protocol):
    @property
    def box(self) -> Rectangle: ...


class Placed(Protocol):
    """Where a mask is set, in pixels of the picture that is drawn on."""

    @property
    def top(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def pixels(self) -> BoolArray: ...


D = TypeVar("D", bound=Boxed)


def draw_labels(picture: PIL.Image.Image, labels: Sequence[Scored]) -> None:
    """A panel with the labels and their scores on an RGB picture."""
    rows = [(f"{label.label}  {label.score:.1%}", colour_of(label.index)) for label in labels]
    draw_panel(picture, rows, Style.of(*picture.size))


def draw_detections(
    picture: PIL.Image.Image, detections: Sequence[D], region_of: Callable[[D], Placed | None], scale: float = 1.0
) -> None:
    """Masks, boxes and tags on an RGB picture, the first detection on top.

    `region_of` is asked for one mask at a time. A picture of `scale` times the answer's size has boxes scaled so.
    """
    style = Style.of(*picture.size)
    for detection in reversed(detections):
        region = region_of(detection)
        if region is not None and region.pixels.size:
            mask = np.multiply(region.pixels, np.uint8(MASK_OPACITY), order="C")
            picture.paste(colour_of(detection.index), (region.left, region.top), PIL.Image.fromarray(mask))
    draw = PIL.ImageDraw.Draw(picture)
    for detection in reversed(detections):
        draw.rectangle(_corners(detection.box, scale), outline=colour_of(detection.index), width=style.line)
    for detection in reversed(detections):
        text = f"{detection.label} {detection.score:.2f}"
        x, y, _, _ = _corners(detection.box, scale)
        draw_tag(picture, text, colour_of(detection.index), x, y, style)


def draw_segments(
    picture: PIL.Image.Image, segments: Sequence[Sized], label_map: LabelMap | None, values: Sequence[int]
) -> None:
    """Tints, borders and a panel with shares on an RGB picture.

    `label_map` is (H, W) of the picture; where it is `values[i]` the pixel belongs to segment i. Without it there
    is the panel alone.
    """
    style = Style.of(*picture.size)
    shown = [(one, value) for one, value in zip(segments, values, strict=True) if one.label != BACKGROUND]
    if label_map is not None:
        _tint(picture, label_map, {value: colour_of(segment.index) for segment, value in shown})
        borders = _borders(label_map, max(1, style.line // 2))
        picture.paste((255, 255, 255), (0, 0), PIL.Image.fromarray(np.multiply(borders, np.uint8(255), order="C")))
    area = max(sum(segment.area for segment in segments), 1)
    rows = [(f"{segment.label}  {segment.area / area:.1%}", colour_of(segment.index)) for segment, _ in shown]
    draw_panel(picture, rows, style)


def _corners(box: Rectangle, scale: float) -> tuple[float, float, float, float]:
    # Rounded as answers tell coordinates: so the server and a reader of its answer draw the same pixels.
    xmin, ymin, xmax, ymax = (round(side, 2) * scale for side in (box.xmin, box.ymin, box.xmax, box.ymax))
    return xmin, ymin, xmax, ymax


def _tint(picture: PIL.Image.Image, label_map: LabelMap, colours: Mapping[int, Colour]) -> None:
    step = max(1, STRIP_PIXELS // picture.width)
    size = max(int(label_map.max()), *colours, 0) + 1
    for some in _batches(colours, PALETTE):
        slots = np.zeros(size, np.uint8)
        slots[list(some)] = np.arange(1, len(some) + 1)
        palette = bytes((0, 0, 0)) + bytes(channel for value in some for channel in colours[value])
        for top in range(0, picture.height, step):
            strip = PIL.Image.fromarray(slots[label_map[top : top + step]])
            mask = strip.point([0] + [MASK_OPACITY] * PALETTE)
            strip.putpalette(palette)
            picture.paste(strip.convert("RGB"), (0, top), mask)


def _batches(values: Mapping[int, Colour], size: int) -> Iterator[list[int]]:
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch


def _borders(label_map: LabelMap, line: int) -> BoolArray:
    """Lines between pixels of different values, `line` pixels wide: bool (H, W)."""
    borders = np.zeros(label_map.shape, np.bool_)
    borders[1:] = label_map[1:] != label_map[:-1]
    borders[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    return _widened(_widened(borders, line).T, line).T


def _widened(pixels: BoolArray, length: int) -> BoolArray:
    """What is set in `pixels` reaches over `length` rows."""
    wide = pixels.copy()
    for by in range(1, length):
        to = (by + 1) // 2
        if by % 2:
            wide[:-to] |= pixels[to:]
        else:
            wide[to:] |= pixels[:-to]
    return wide
