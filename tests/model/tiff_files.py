"""TIFF files in forms that no library here writes: tiles, separate planes, BigTIFF, either byte order."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

SHORT, LONG, LONG8 = 3, 4, 16
NONE, DEFLATE = 1, 8
GREY, RGB = 1, 2


def tiff(
    samples: npt.NDArray[Any],
    *,
    order: Literal["<", ">"] = "<",
    big: bool = False,
    part: tuple[int, int] | None = None,
    tiled: bool = False,
    planar: bool = False,
    compression: int = NONE,
    photometric: int | None = None,
    tags: Mapping[int, tuple[int, ...]] | None = None,
) -> bytes:
    """`samples` is uint8 or uint16, (H, W) or (H, W, channels). `part` is (height, width) of a strip or tile.

    `tags` are added, as LONG, or replace others; an empty tuple leaves one out.
    """
    height, width = samples.shape[:2]
    stored = samples.reshape(height, width, -1)
    stored = stored.astype(stored.dtype.newbyteorder(order))
    channels, bits = stored.shape[2], stored.dtype.itemsize * 8
    part_height, part_width = part or (height, width)
    planes = [stored[:, :, one : one + 1] for one in range(channels)] if planar else [stored]
    parts = [
        _part(plane[top : top + part_height, left : left + part_width], (part_height, part_width), tiled, compression)
        for plane in planes
        for top in range(0, height, part_height)
        for left in range(0, width, part_width)
    ]
    directory: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (bits,) * channels,
        259: (compression,),
        262: (GREY if channels < 3 else RGB,) if photometric is None else (photometric,),
        277: (channels,),
        284: (2 if planar else 1,),
    }
    sizes = tuple(map(len, parts))
    start = 16 if big else 8
    offsets = tuple(start + sum(sizes[:number]) for number in range(len(sizes)))
    if tiled:
        directory |= {322: (part_width,), 323: (part_height,), 324: offsets, 325: sizes}
    else:
        directory |= {273: offsets, 278: (part_height,), 279: sizes}
    directory.update(tags or {})
    directory = {number: values for number, values in sorted(directory.items()) if values}
    body = b"".join(parts)
    body += bytes(len(body) % 2)
    entry, inline, code = (f"{order}HHQ", 8, "Q") if big else (f"{order}HHI", 4, "I")
    at = start + len(body)
    values_at = at + (8 if big else 2) + len(directory) * (4 + 2 * inline) + inline
    table, values = [struct.pack(f"{order}{'Q' if big else 'H'}", len(directory))], b""
    for number, numbers in directory.items():
        content = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        table.append(struct.pack(entry, number, LONG8 if big else LONG, len(numbers)))
        if len(content) > inline:
            table.append(struct.pack(f"{order}{code}", values_at + len(values)))
            values += content
        else:
            table.append(content.ljust(inline, b"\0"))
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(f"{order}HHHQ", 43, 8, 0, at) if big else struct.pack(f"{order}HI", 42, at))
    return head + body + b"".join(table) + bytes(inline) + values


def _part(samples: npt.NDArray[Any], sides: tuple[int, int], tiled: bool, compression: int) -> bytes:
    """A strip, or a tile, which is filled up to its sides."""
    if tiled:
        filling = [(0, side - length) for side, length in zip(sides, samples.shape, strict=False)]
        samples = np.pad(samples, [*filling, (0, 0)])
    content = samples.tobytes()
    return zlib.compress(content) if compression == DEFLATE else content
