"""PNG: the still picture's chunks. Text, profiles and animation frames are left out: damage or a compression bomb
there would fail the picture."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO

from PIL.PngImagePlugin import PngImageFile

from model.containers.header import (
    MAX_HEADER_PARTS,
    MAX_PARTS,
    UPRIGHT,
    Header,
    ImageFormat,
    check_size,
    exif_orientation,
    header_of,
    too_many_parts,
)
from model.errors import ImageTooLarge

STILL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""
SPARE_BYTES = 1 << 16
"""Compressed data may be so much longer than twice the rows, which no encoder needs."""


def read_header(data: bytes) -> Header:
    """The header of a PNG.

    Raises:
        struct.error, KeyError: damaged.
        ImageUndecodable, ImageTooLarge: no pixels; too many chunks.
    """
    for kind, start, _ in _chunks(data, MAX_HEADER_PARTS):
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, start + 8)
            # Inflating and filters take their time by byte.
            # A row begins with the number of its filter, which needs the row above.
            row_bytes = (CHANNELS[colour] * depth * width + 7) // 8 + 1
            most = 2 * row_bytes * height + SPARE_BYTES
            cost = (0.5 + 2 * bool(interlaced)) * width * height + 1.3 * row_bytes * height + 4 * min(len(data), most)
            return header_of(ImageFormat.PNG, width, height, cost, row_bytes=2 * row_bytes, layout=most)
    raise struct.error("no header")


def load(data: bytes, header: Header) -> tuple[PngImageFile, int]:
    """The picture as it is stored, and its EXIF orientation.

    Raises:
        ImageTooLarge: too many chunks, or too much compressed data for the pixels.
        Exception: what Pillow raises for damaged files.
    """
    view = memoryview(data)
    chunks = [view[:8]]
    orientation, encoded_bytes = UPRIGHT, 0
    for kind, start, end in _chunks(data, MAX_PARTS):
        if kind in STILL_CHUNKS:
            encoded_bytes += min(end, len(data)) - start
            chunks.append(view[start:end])
        elif kind == b"eXIf":
            orientation = exif_orientation(data[start + 8 : end - 4])
    assert isinstance(header.layout, int)
    if encoded_bytes > header.layout:
        raise ImageTooLarge(
            f"the PNG has {encoded_bytes:,} bytes; the limit for its pixels is {header.layout:,}; save it again"
        )
    file = PngImageFile(BytesIO(b"".join(chunks)))
    check_size(file, header)
    file.load()
    return file, orientation


def _chunks(data: bytes, limit: int) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk, and where it starts and ends. What follows the end chunk is not part of the picture.

    Raises:
        ImageTooLarge: too many.
    """
    offset = 8
    for _ in range(limit):
        if offset + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, offset)
        yield kind, offset, offset + 12 + length
        if kind == b"IEND":
            return
        offset += 12 + length
    raise too_many_parts(ImageFormat.PNG, "chunks", limit)
