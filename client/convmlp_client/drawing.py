"""Draws results on an image, in place, with Pillow.

The functions take protocols, so that the service draws its own results with the same code.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from convmlp_client.fonts import PACKAGED, SYSTEM_FONTS, Fonts
from convmlp_client.geometry import BoolArray

BACKGROUND: Final = "background"
"""A segment of this class is not tinted."""

MASK_OPACITY: Final = 115
"""Of 255."""
PANEL_SHADE: Final = 0.3
"""The brightness that a panel leaves of the image below it."""
MAX_PANEL_ROWS: Final = 20
STRIP_PIXELS: Final = 1 << 20
"""Segments are tinted in strips of about so many pixels, which bounds the memory."""
PALETTE_SIZE: Final = 255
WHITE: Final = (255, 255, 255)
BLACK: Final = (0, 0, 0)

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""
Palette = Sequence[Colour]
"""The colour of each class, by class index."""
Rectangle = tuple[int, int, int, int]
"""Left, top, right and bottom of a panel, in pixels of the canvas."""
LabelMap = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class HasLabel(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def index(self) -> int: ...


class HasScore(HasLabel, Protocol):
    @property
    def score(self) -> float: ...


class HasArea(HasLabel, Protocol):
    @property
    def area(self) -> int: ...


class BoxLike(Protocol):
    @property
    def xmin(self) -> float: ...
    @property
    def ymin(self) -> float: ...
    @property
    def xmax(self) -> float: ...
    @property
    def ymax(self) -> float: ...


class HasBox(HasScore, Protocol):
    @property
    def box(self) -> BoxLike: ...


class RegionLike(Protocol):
    """A mask, bool (h, w), and the row and column of the canvas where it starts."""

    @property
    def top(self) -> int: ...
    @property
    def left(self) -> int: ...
    @property
    def pixels(self) -> BoolArray: ...


D = TypeVar("D", bound=HasBox)


@dataclass(frozen=True, slots=True)
class Line:
    """Text in pieces from left to right, each in a font that has all of its letters. The last one's font has "…"."""

    pieces: tuple[tuple[str, PIL.ImageFont.FreeTypeFont], ...]

    @property
    def length(self) -> float:
        """In pixels."""
        return sum(font.getlength(text) for text, font in self.pieces)

    def truncate(self, width: float) -> Line:
        """The line, shortened to a width in pixels. At least one letter remains."""
        if self.length <= width:
            return self
        kept, refused = 1, sum(len(text) for text, _ in self.pieces)
        while refused - kept > 1:
            middle = (kept + refused) // 2
            if self._first(middle).length <= width:
                kept = middle
            else:
                refused = middle
        return self._first(kept)

    def draw(self, draw: PIL.ImageDraw.ImageDraw, x: float, baseline: float, colour: Colour) -> None:
        for text, font in self.pieces:
            draw.text((x, baseline), text, fill=colour, font=font, anchor="ls")
            x += font.getlength(text)

    def _first(self, count: int) -> Line:
        """The first letters, and an ellipsis."""
        pieces = []
        for text, font in self.pieces:
            if count > 0:
                pieces.append((text[:count], font))
            count -= len(text)
        return Line(_joined((*pieces, ("…", self.pieces[-1][1]))))


def _joined(
    pieces: Sequence[tuple[str, PIL.ImageFont.FreeTypeFont]],
) -> tuple[tuple[str, PIL.ImageFont.FreeTypeFont], ...]:
    """Neighbours of one font as one piece."""
    joined: list[tuple[str, PIL.ImageFont.FreeTypeFont]] = []
    for text, font in pieces:
        if joined and joined[-1][1] is font:
            joined[-1] = joined[-1][0] + text, font
        else:
            joined.append((text, font))
    return tuple(joined)


@dataclass(frozen=True, slots=True)
class Style:
    """Sizes of lines and text in pixels, in proportion to the image."""

    line_width: int
    pad: int
    font_size: int
    fonts: Fonts = SYSTEM_FONTS
    _opened: dict[Path, PIL.ImageFont.FreeTypeFont] = field(default_factory=dict)

    @classmethod
    def for_size(cls, width: int, height: int) -> Style:
        side = math.sqrt(height * width)
        font_size = min(max(round(side / 28), 12), 96)
        return cls(line_width=max(2, round(side / 250)), pad=max(2, font_size // 4), font_size=font_size)

    @property
    def ascent(self) -> int:
        """The height of text above its baseline, accents included."""
        return -math.floor(self._open(PACKAGED).getbbox("Ág", anchor="ls")[1])

    @property
    def text_height(self) -> int:
        return self.ascent + math.ceil(self._open(PACKAGED).getbbox("Ág", anchor="ls")[3])

    @property
    def panel_step(self) -> int:
        """From one row of a panel to the next."""
        return self.text_height + self.pad

    def line(self, label: HasLabel, suffix: str) -> Line:
        """The name of a class, or its index if no font has the name's letters, and a suffix of ASCII."""
        pieces = (*self.fonts.legible(label.label, label.index), (suffix, PACKAGED))
        return Line(_joined([(text, self._open(path)) for text, path in pieces]))

    def _open(self, path: Path) -> PIL.ImageFont.FreeTypeFont:
        if path not in self._opened:
            self._opened[path] = PIL.ImageFont.truetype(path, self.font_size)
        return self._opened[path]


def label_colour(label: str) -> Colour:
    """The colour of a label, in any case: the same in every image and task, for every model without a palette."""
    digest = hashlib.blake2b(label.casefold().encode(errors="replace"), digest_size=5).digest()
    hue = int.from_bytes(digest[:4]) / 2**32
    saturation, value = ((0.85, 1.0), (0.65, 0.85), (1.0, 0.7))[digest[4] % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def class_colour(label: HasLabel, palette: Palette | None) -> Colour:
    """The colour of a class in a palette; that of its label without a palette, or beyond it."""
    return palette[label.index] if palette is not None and label.index < len(palette) else label_colour(label.label)


def draw_labels(
    canvas: PIL.Image.Image, labels: Sequence[HasScore], top: int = 0, palette: Palette | None = None
) -> Rectangle | None:
    """Draw a panel with labels and scores on an RGB image, from row `top` on; return where it is, if there is any."""
    style = Style.for_size(*canvas.size)
    rows = [(label, f"  {label.score:.1%}") for label in labels[:MAX_PANEL_ROWS]]
    return _draw_panel(canvas, rows, style, top, palette)


def panel_tops(
    size: tuple[int, int], labels: Sequence[Sequence[HasScore]], segments: Sequence[Sequence[HasArea]]
) -> tuple[list[int], list[int]]:
    """The rows from which the panels of several results are drawn, below each other: those of labels first.

    `size` is the canvas's width and height.
    """
    style = Style.for_size(*size)
    rows = [len(one) for one in labels] + [sum(part.label != BACKGROUND for part in one) for one in segments]
    heights = [3 * style.pad + style.panel_step * min(count, MAX_PANEL_ROWS) if count else 0 for count in rows]
    tops = [sum(heights[:at]) for at in range(len(heights))]
    return tops[: len(labels)], tops[len(labels) :]


def draw_detections(
    canvas: PIL.Image.Image,
    detections: Sequence[D],
    region_of: Callable[[D], RegionLike | None],
    scale: float = 1.0,
    palette: Palette | None = None,
) -> None:
    """Draw masks and boxes on an RGB image, the first detection on top. `draw_tags` adds their labels.

    `region_of` gives the mask of a detection in pixels of the canvas. It is called for one detection at a time, so
    that only one mask is in memory. `scale` is the size of the canvas divided by the size of the original image, in
    whose pixels the boxes are.
    """
    style = Style.for_size(*canvas.size)
    for detection in reversed(detections):
        region = region_of(detection)
        if region is not None and region.pixels.size:
            mask = np.multiply(region.pixels, np.uint8(MASK_OPACITY), order="C")
            canvas.paste(class_colour(detection, palette), (region.left, region.top), PIL.Image.fromarray(mask))
    draw = PIL.ImageDraw.Draw(canvas)
    for detection in reversed(detections):
        corners = _scaled_corners(detection.box, scale)
        draw.rectangle(corners, outline=class_colour(detection, palette), width=style.line_width)


def draw_tags(
    canvas: PIL.Image.Image,
    detections: Sequence[D],
    panels: Sequence[Rectangle | None] = (),
    scale: float = 1.0,
    palette: Palette | None = None,
) -> None:
    """Draw labels and scores at the boxes of detections, right of the panels where there is room, the first on top."""
    style = Style.for_size(*canvas.size)
    for detection in reversed(detections):
        x, y, _, _ = _scaled_corners(detection.box, scale)
        line = style.line(detection, f" {detection.score:.2f}")
        _draw_tag(canvas, line, class_colour(detection, palette), (x, y), style, [one for one in panels if one])


def draw_segments(
    canvas: PIL.Image.Image,
    segments: Sequence[HasArea],
    label_map: LabelMap | None,
    values: Sequence[int],
    area: int,
    top: int = 0,
    palette: Palette | None = None,
) -> Rectangle | None:
    """Draw tints, borders, and from row `top` on a panel with the share of each segment, on an RGB image.

    Returns where the panel is, if there is any.

    `label_map` is (H, W) of the canvas; pixels of value `values[i]` belong to segment i. If it is None, only the panel
    is drawn. `area` is that of the image that was segmented, in pixels.
    """
    style = Style.for_size(*canvas.size)
    tinted = [(one, value) for one, value in zip(segments, values, strict=True) if one.label != BACKGROUND]
    if label_map is not None:
        _tint(canvas, label_map, {value: class_colour(segment, palette) for segment, value in tinted})
        borders = _borders(label_map, max(1, style.line_width // 2))
        canvas.paste(WHITE, (0, 0), PIL.Image.fromarray(np.multiply(borders, np.uint8(255), order="C")))
    rows = [(segment, f"  {segment.area / area:.1%}") for segment, _ in tinted[:MAX_PANEL_ROWS]]
    return _draw_panel(canvas, rows, style, top, palette)


def _draw_panel(
    canvas: PIL.Image.Image,
    rows: Sequence[tuple[HasLabel, str]],
    style: Style,
    top: int,
    palette: Palette | None,
) -> Rectangle | None:
    """Labels and suffixes with a swatch of their colour, on a darkened panel at the left, from row `top` on.

    Rows for which there is no room are left out; without one above it a panel has at least one row.
    """
    width, height = canvas.size
    swatch, step = style.text_height, style.panel_step
    rows = rows[: max(0 if top else 1, (height - top - 3 * style.pad) // step)]
    if not rows:
        return None
    lines = [style.line(label, suffix).truncate(width - 6 * style.pad - swatch) for label, suffix in rows]
    panel_width = math.ceil(max(line.length for line in lines)) + swatch + 4 * style.pad
    right, bottom = min(width, style.pad + panel_width), min(height, top + 3 * style.pad + step * len(rows))
    if style.pad < right and top + style.pad < bottom:
        panel = (style.pad, top + style.pad, right, bottom)
        canvas.paste(canvas.crop(panel).point(lambda level: level * PANEL_SHADE), panel)
    draw = PIL.ImageDraw.Draw(canvas)
    for at, (line, (label, _)) in enumerate(zip(lines, rows, strict=True)):
        x, y = 2 * style.pad, top + 2 * style.pad + at * step
        draw.rectangle((x, y, x + swatch - 1, y + swatch - 1), fill=class_colour(label, palette))
        line.draw(draw, x + swatch + style.pad, y + style.ascent, WHITE)
    return style.pad, top + style.pad, right, bottom


def _draw_tag(
    canvas: PIL.Image.Image,
    line: Line,
    colour: Colour,
    corner: tuple[float, float],
    style: Style,
    panels: Sequence[Rectangle],
) -> None:
    """Text on a coloured rectangle above a corner, or below it if there is no room; always within the image."""
    width, height = canvas.size
    x, y = corner
    line = line.truncate(width - 2 * style.pad)
    tag_width = math.ceil(line.length) + 2 * style.pad
    tag_height = style.text_height + style.pad
    x = max(0.0, min(x, width - tag_width))
    above = y - tag_height
    y = above if above >= 0 else max(0.0, min(y, height - tag_height))
    for left, top, right, bottom in panels:
        if x < right and x + tag_width > left and y < bottom and y + tag_height > top:
            x = max(0.0, min(right, width - tag_width))
    draw = PIL.ImageDraw.Draw(canvas)
    draw.rectangle((x, y, x + tag_width, y + tag_height), fill=colour)
    baseline = y + style.pad // 2 + style.ascent
    line.draw(draw, x + style.pad, baseline, _text_colour(colour))


def _text_colour(background: Colour) -> Colour:
    """Black or white, whichever has more contrast by relative luminance (WCAG 2, with gamma 2.2 for the sRGB curve)."""
    red, green, blue = ((channel / 255) ** 2.2 for channel in background)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # Both have equal contrast at sqrt(1.05 x 0.05) - 0.05.
    return BLACK if luminance > 0.179 else WHITE


def _scaled_corners(box: BoxLike, scale: float) -> tuple[float, float, float, float]:
    # Rounded like the coordinates of the APIs, so that the service and its clients draw the same pixels.
    xmin, ymin, xmax, ymax = (round(side, 2) * scale for side in (box.xmin, box.ymin, box.xmax, box.ymax))
    return xmin, ymin, xmax, ymax


def _tint(canvas: PIL.Image.Image, label_map: LabelMap, colours: Mapping[int, Colour]) -> None:
    step = max(1, STRIP_PIXELS // canvas.width)
    size = max(int(label_map.max()), *colours, 0) + 1
    for values in _batches(colours, PALETTE_SIZE):
        slots = np.zeros(size, np.uint8)
        slots[list(values)] = np.arange(1, len(values) + 1)
        palette = bytes(BLACK) + bytes(channel for value in values for channel in colours[value])
        for top in range(0, canvas.height, step):
            strip = PIL.Image.fromarray(slots[label_map[top : top + step]])
            mask = strip.point([0] + [MASK_OPACITY] * PALETTE_SIZE)
            strip.putpalette(palette)
            canvas.paste(strip.convert("RGB"), (0, top), mask)


def _batches(values: Mapping[int, Colour], size: int) -> Iterator[list[int]]:
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch


def _borders(label_map: LabelMap, line_width: int) -> BoolArray:
    """Lines of `line_width` pixels between pixels of different values: bool (H, W)."""
    borders = np.zeros(label_map.shape, np.bool_)
    borders[1:] = label_map[1:] != label_map[:-1]
    borders[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    return _dilate_rows(_dilate_rows(borders, line_width).T, line_width).T


def _dilate_rows(pixels: BoolArray, length: int) -> BoolArray:
    """Each pixel that is set becomes `length` rows high."""
    dilated = pixels.copy()
    for by in range(1, length):
        to = (by + 1) // 2
        if by % 2:
            dilated[:-to] |= pixels[to:]
        else:
            dilated[to:] |= pixels[:-to]
    return dilated
