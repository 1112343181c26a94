"""Colours and letters of an overlay: a class has the same colour everywhere, and text stands on a plate."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

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
