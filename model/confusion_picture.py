"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from model.types import IntArray

CELL, MARGIN, LINE = 22, 190, 24
"""Pixels of a cell, of the names' columns, and of the right and lower edge."""
MAX_NAME = 28
INK, PAPER, RULE = (30, 30, 30), (255, 255, 255), (200, 120, 60)


def draw_confusion(
    counts: IntArray,
    names: Sequence[str],
    caption: str,
    *,
    divider: int | None = None,
    totals: IntArray | None = None,
) -> Image.Image:
    """True classes in rows, answers in columns; darker: a larger share of the row.

    Args:
        counts: [truth, answer], int (N, N).
        names: of the classes, in the order of rows and columns.
        caption: in the upper left corner.
        divider: number of classes before a line across rows and columns; None: no line.
        totals: the number of which a row's counts are shares, int (N,); None: the sum of the row.
    """
    totals = counts.sum(axis=1) if totals is None else totals
    shares = counts / np.maximum(totals, 1)[:, None]
    side = CELL * len(names)
    image = Image.new("RGB", (MARGIN + side + LINE, MARGIN + side + LINE), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    small = ImageFont.load_default(9)
    names = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in names]
    for row, name in enumerate(names):
        middle = MARGIN + CELL * row + CELL // 2
        draw.text((MARGIN - 6, middle), name, INK, font, anchor="rm")
        for column in range(len(names)):
            left, top = MARGIN + CELL * column, MARGIN + CELL * row
            grey = round(255 - 215 * float(shares[row, column]))
            draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), (grey, grey, 255), (235, 235, 235))
            if count := int(counts[row, column]):
                ink = PAPER if grey < 128 else INK
                text = str(count) if count < 10_000 else f"{count:.0e}".replace("e+0", "e")
                fitting = font if len(text) < 3 else small
                draw.text((left + CELL // 2, middle), text, ink, fitting, anchor="mm")
    headings = Image.new("RGB", (MARGIN, side), PAPER)
    sideways = ImageDraw.Draw(headings)
    for row, name in enumerate(names):
        sideways.text((6, CELL * row + CELL // 2), name, INK, font, anchor="lm")
    image.paste(headings.rotate(90, expand=True), (MARGIN, 0))
    if divider is not None:
        edge = MARGIN + CELL * divider
        draw.line((MARGIN, edge, MARGIN + side, edge), RULE, 2)
        draw.line((edge, MARGIN, edge, MARGIN + side), RULE, 2)
    draw.text((6, 6), caption, INK, font)
    return image
