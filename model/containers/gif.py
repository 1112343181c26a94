"""GIF: the first frame."""

from __future__ import annotations

import struct
from io import BytesIO

from PIL.GifImagePlugin import GifImageFile

from model.containers.header import (
    MAX_HEADER_PARTS,
    UPRIGHT,
    Header,
    ImageFormat,
    check_size,
    header_of,
    too_many_parts,
)
from model.errors import ImageUndecodable

GRAPHIC_CONTROL = 0xF9
EXTENSION, FRAME, END = b"!,;"


def read_header(data: bytes) -> Header:
    """The header of a GIF; its size is that of the first frame's canvas.

    Raises:
        struct.error, IndexError: truncated.
        ImageUndecodable, ImageTooLarge: no frame; too many blocks before it.
    """
    screen_width, screen_height = struct.unpack_from("<HH", data, 6)
    frame, _ = _first_frame(data)
    left, top, width, height = struct.unpack_from("<HHHH", data, frame + 1)
    # A frame larger than the screen enlarges it.
    width, height = max(screen_width, left + width), max(screen_height, top + height)
    # A pixel's code has at most 12 bits; what is beyond them belongs to other frames.
    encoded_bytes = min(len(data), 1.5 * width * height)
    return header_of(ImageFormat.GIF, width, height, 2 * width * height + 4 * encoded_bytes)


def load(data: bytes, header: Header) -> tuple[GifImageFile, int]:
    """The picture, and its orientation: a GIF has none. Raises what Pillow does for damaged files."""
    frame, transparent = _first_frame(data)
    control = b"" if transparent is None else bytes([EXTENSION, GRAPHIC_CONTROL, 4, 1, 0, 0, transparent, 0])
    file = GifImageFile(BytesIO(b"".join((data[: _palette_end(data)], control, memoryview(data)[frame:]))))
    check_size(file, header)
    file.load()
    return file, UPRIGHT


def _palette_end(data: bytes) -> int:
    flags = data[10]
    return 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)


def _first_frame(data: bytes) -> tuple[int, int | None]:
    """The offset of the first frame's descriptor, and the index of its transparent colour."""
    offset = _palette_end(data)
    transparent: int | None = None
    in_extension = False
    for _ in range(MAX_HEADER_PARTS):
        first = data[offset]
        if in_extension:
            # A sub-block; an empty one ends the extension.
            in_extension = first > 0
            offset += 1 + first
        elif first == FRAME:
            return offset, transparent
        elif first == END:
            break
        elif first == EXTENSION:
            if data[offset + 1] == GRAPHIC_CONTROL and data[offset + 3] & 1:
                transparent = data[offset + 6]
            in_extension = True
            offset += 2
        else:
            offset += 1
    else:
        raise too_many_parts(ImageFormat.GIF, "blocks before its first frame", MAX_HEADER_PARTS)
    raise ImageUndecodable("the GIF has no frame; send one with a picture")
