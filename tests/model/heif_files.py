"""HEIC and AVIF files in forms that no encoder here writes: turned, cropped, in tiles, with further items.

The coded pictures are those of `pictures/`: `blocks.heic` and `cutout.heic` are without loss, in RGB; `photo.heic` and
`ten_bits.heic` show the reference picture, `grey.heic` its grey, `tile.heic` it in
64 x 64 pixels and `large_tile.heic` in 512 x 512.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from model.containers.isobmff import Item, NewItem, Property, Reference, Still, box, read_still, write_still

PICTURES = Path(__file__).parent / "pictures"


def picture(name: str) -> bytes:
    return (PICTURES / f"{name}.heic").read_bytes()


def prop(kind: bytes, content: bytes, *, essential: bool = True) -> Property:
    return Property(kind, box(kind, content), essential)


def irot(turns: int) -> Property:
    """So many quarter turns to the left."""
    return prop(b"irot", bytes([turns]))


def imir(axis: int) -> Property:
    """Top to bottom (0), or left to right (1)."""
    return prop(b"imir", bytes([axis]))


def clap(width: int, height: int, right: float = 0, down: float = 0) -> Property:
    """A crop, whose centre is so far from the picture's, in pixels, in halves at the finest."""
    return prop(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, int(2 * right), 2, int(2 * down), 2))


def still_of(data: bytes) -> tuple[Still, Item]:
    """A file's items, and its primary one."""
    still = read_still(data)
    return still, still.items[still.primary]


def rewritten(
    data: bytes,
    properties: Sequence[Property] = (),
    *,
    kept: frozenset[bytes] = frozenset({b"hvcC", b"av1C", b"ispe", b"pixi", b"colr"}),
    encoded: bytes | None = None,
    further: Sequence[NewItem] = (),
    references: Sequence[Reference] = (),
) -> bytes:
    """A file's primary picture with further properties, other data, further items, which are numbered from 2."""
    _, item = still_of(data)
    own = [one for one in item.properties if one.kind in kept]
    first = NewItem(item.kind, item.data(data) if encoded is None else encoded, [*own, *properties])
    return write_still(b"heic" if item.kind == b"hvc1" else b"avif", [first, *further], references)


def size_property(width: int, height: int) -> Property:
    return prop(b"ispe", struct.pack(">III", 0, width, height), essential=False)


def grid_of(
    data: bytes, rows: int, columns: int, width: int, height: int, properties: Sequence[Property] = (), tiles: int = 0
) -> bytes:
    """A grid of one tile, `rows` x `columns` times, or `tiles` times, cropped to `width` x `height`."""
    _, item = still_of(data)
    tile = NewItem(item.kind, item.data(data), item.properties)
    grid = NewItem(
        b"grid",
        struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height),
        [size_property(width, height), *properties],
    )
    count = tiles or rows * columns
    numbers = tuple(range(2, 2 + count))
    return write_still(
        b"heic" if item.kind == b"hvc1" else b"avif", [grid, *[tile] * count], [Reference(b"dimg", 1, numbers)]
    )
