"""GIF: the first frame."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL.GifImagePlugin import GifImageFile

from model.containers.header import (
    DECODED_BYTES,
    MAX_HEADER_PARTS,
    UPRIGHT,
    Header,
    ImageFormat,
    header_of,
    too_many_parts,
)
from model.errors import ImageUndecodable
from model.pixels import WHITE, pillow_to_rgb
from model.types import Size, UInt8Array

GRAPHIC_CONTROL = 0xF9
EXTENSION, FRAME, END = b"!,;"
FRAME_BYTES, CANVAS_BYTES = 5, 3
"""Of a pixel of a frame that is smaller than the screen, and of the screen: both are in memory at the peak."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """The first frame: where its descriptor starts, the index of its transparent colour, and its place in pixels."""

    start: int
    transparent: int | None
    left: int
    top: int
    width: int
    height: int

    def fills(self, screen: Size) -> bool:
        return (self.width, self.height) == (screen.width, screen.height)


def read_header(data: bytes) -> Header:
    """The header of a GIF; its size is that of the first frame's canvas.

    Raises:
        struct.error, IndexError: truncated.
        ImageUndecodable, ImageTooLarge: no frame; too many blocks before it.
    """
    screen_width, screen_height = struct.unpack_from("<HH", data, 6)
    start, transparent = _first_frame(data)
    left, top, width, height = struct.unpack_from("<HHHH", data, start + 1)
    frame = _Frame(start, transparent, left, top, width, height)
    # A frame larger than the screen enlarges it.
    width, height = max(screen_width, left + width), max(screen_height, top + height)
    # A pixel's code has at most 12 bits; what is beyond them belongs to other frames.
    encoded_bytes = min(len(data), 1.5 * width * height)
    fills = frame.fills(Size(height, width))
    frame_bytes = 0 if fills else FRAME_BYTES * frame.width * frame.height
    return header_of(
        ImageFormat.GIF,
        width,
        height,
        (2 if fills else 3) * width * height + 4 * encoded_bytes,
        row_bytes=max(CANVAS_BYTES * width * height + frame_bytes - DECODED_BYTES * width * height, 0),
        layout=frame,
    )


def load(data: bytes, header: Header) -> tuple[GifImageFile | UInt8Array, int]:
    """The picture, an array being RGB, and its orientation: a GIF has none. Around a smaller frame it is white.

    Raises:
        ImageUndecodable: the frame has no pixels.
        Exception: what Pillow raises for damaged files.
    """
    frame = header.layout
    assert isinstance(frame, _Frame)
    control = (
        b"" if frame.transparent is None else bytes([EXTENSION, GRAPHIC_CONTROL, 4, 1, 0, 0, frame.transparent, 0])
    )
    # A screen of the frame's size, and the frame at its corner.
    sides = struct.pack("<HH", frame.width, frame.height)
    parts = (data[:6], sides, data[10 : _palette_end(data)], control, b",\0\0\0\0", memoryview(data)[frame.start + 5 :])
    file = GifImageFile(BytesIO(b"".join(parts)))
    if file.size != (frame.width, frame.height):
        raise ImageUndecodable("the GIF's first frame has no pixels; save it again")
    file.load()
    if frame.fills(header.size):
        return file, UPRIGHT
    pixels = np.full((header.size.height, header.size.width, 3), WHITE, np.uint8)
    part = pixels[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    part[:] = pillow_to_rgb(file)[:, :, :3]
    return pixels, UPRIGHT


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
