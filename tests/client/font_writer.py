"""TrueType fonts of a few letters, written for tests: each letter is a filled square of the font's own size."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

MAGIC = 0x5F0F3CF5
UNITS = 1000
"""Font units of an em."""


def write_font(path: Path, letters: Iterable[str], side: int = 600) -> Path:
    """A font file with glyphs for the letters. Its box for missing glyphs has half the side, in font units."""
    points = sorted(ord(letter) for letter in letters)
    glyphs = [_square(side // 2), *[_square(side)] * len(points)]
    groups = b"".join(struct.pack(">LLL", point, point, 1 + at) for at, point in enumerate(points))
    tables = {
        "cmap": struct.pack(">HHHHL", 0, 1, 3, 10, 12)
        + struct.pack(">HHLLL", 12, 0, 16 + len(groups), 0, len(points))
        + groups,
        "glyf": b"".join(glyphs),
        "head": struct.pack(">LLLLHH16x4hHHhhh", 1 << 16, 0, 0, MAGIC, 0, UNITS, 0, 0, side, side, 0, 8, 2, 1, 0),
        "hhea": struct.pack(">LhhhHhhhhhh8xhH", 1 << 16, 800, -200, 0, side, 0, 0, side, 1, 0, 0, 0, 1),
        "hmtx": struct.pack(">Hh", side, 0) + bytes(2 * (len(glyphs) - 1)),
        "loca": struct.pack(f">{len(glyphs) + 1}L", *(len(glyphs[0]) * at for at in range(len(glyphs) + 1))),
        "maxp": struct.pack(">LHHHHHHHHHHHHHH", 1 << 16, len(glyphs), 4, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0),
    }
    offset = 12 + 16 * len(tables)
    directory, body = struct.pack(">LHHHH", 1 << 16, len(tables), 0, 0, 0), b""
    for tag, table in tables.items():
        directory += struct.pack(">4sLLL", tag.encode(), 0, offset + len(body), len(table))
        body += table + bytes(-len(table) % 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(directory + body)
    return path


def _square(side: int) -> bytes:
    """A glyph: one contour of four points on the curve, with coordinates of two bytes."""
    glyph = struct.pack(">hhhhhHH4B", 1, 0, 0, side, side, 3, 0, 1, 1, 1, 1)
    glyph += struct.pack(">4h4h", 0, side, 0, -side, 0, 0, side, 0)
    return glyph + bytes(-len(glyph) % 4)
