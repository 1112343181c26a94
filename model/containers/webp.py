"""WebP: the still picture, or an animation's first frame.

The libwebp that Pillow is linked to decodes it. Pillow itself makes the same pixels, but holds four copies of them,
each of four bytes a pixel, and takes twice the time.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import PIL._webp

from model.containers import vp8l
from model.containers.header import (
    DECODED_BYTES,
    MAX_HEADER_PARTS,
    UPRIGHT,
    Header,
    ImageFormat,
    exif_orientation,
    header_of,
    too_many_parts,
)
from model.errors import ImageUndecodable
from model.pixels import WHITE, composite_on_white
from model.types import UInt8Array

# The functions are found in what Pillow's module needs: https://developers.google.com/speed/webp/docs/api
_libwebp = ctypes.CDLL(PIL._webp.__file__)
_DECODERS = {3: _libwebp.WebPDecodeRGBInto, 4: _libwebp.WebPDecodeRGBAInto}
"""By the bytes of a pixel. They return NULL for what is damaged, and where memory is lacking."""
for _decoder in _DECODERS.values():
    _decoder.restype = ctypes.c_void_p
    _decoder.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

HAS_ALPHA, IS_ANIMATED = 0x10, 0x02
"""Flags of an extended file."""
ALPHA, LOSSY, LOSSLESS, EXTENDED, FRAME, EXIF = b"ALPH", b"VP8 ", b"VP8L", b"VP8X", b"ANMF", b"EXIF"
"""Kinds of chunks."""
FILE_HEADER_BYTES, CHUNK_HEADER_BYTES, FRAME_HEADER_BYTES = 12, 8, 16

LOSSY_COST, LOSSLESS_COST, ALPHA_COST = 2, 6, 4
"""Of a pixel."""
LOSSY_BYTE_COST, LOSSLESS_BYTE_COST = 16, 1.5
"""Of an encoded byte."""
LOSSLESS_BYTES = 8
"""Of a pixel at the peak: a lossless picture, or alpha, is decoded to four bytes, and copied to as many."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a file's first picture is. Sides, left and top in pixels of the canvas; chunks as (start, end)."""

    canvas: tuple[int, int]
    frame: tuple[int, int]
    left: int
    top: int
    flags: int
    chunks: list[tuple[int, int]]
    lossless: bool
    end: int
    """Where metadata may follow."""

    @property
    def still(self) -> bool:
        return not self.flags & IS_ANIMATED


def read_header(data: bytes) -> Header:
    """The header of a WebP; its size is the canvas's.

    Raises:
        struct.error, IndexError: truncated.
        ImageUndecodable, ImageTooLarge: no picture; too many chunks.
    """
    layout = _layout(data)
    width, height = layout.canvas
    alpha = bool(layout.flags & HAS_ALPHA)
    encoded_bytes = sum(end - start for start, end in layout.chunks)
    if layout.lossless:
        cost = LOSSLESS_COST * width * height + LOSSLESS_BYTE_COST * encoded_bytes
    else:
        cost = (LOSSY_COST + ALPHA_COST * alpha) * width * height + LOSSY_BYTE_COST * encoded_bytes
    pixel_bytes = LOSSLESS_BYTES if layout.lossless or alpha else DECODED_BYTES
    tables = sum(vp8l.table_limit(*layout.frame) for _ in _lossless_streams(data, layout))
    return header_of(ImageFormat.WEBP, width, height, cost, pixel_bytes=pixel_bytes, row_bytes=tables, layout=layout)


def load(data: bytes, header: Header) -> tuple[UInt8Array, int]:
    """The picture as it is stored, uint8 (H, W, 3 or 4): RGB, and a fourth channel without meaning; and its EXIF
    orientation.

    Raises:
        struct.error, ImageTooLarge: too many chunks, or damaged ones; too large tables of codes.
        ValueError: corrupt, or out of memory.
    """
    layout = header.layout
    assert isinstance(layout, _Layout)
    for stream, has_header in _lossless_streams(data, layout):
        vp8l.check_tables(stream, *layout.frame, has_header=has_header)
    width, height = layout.frame
    has_alpha = _has_alpha(data, layout)
    picture = np.empty((height, width, 4 if has_alpha else 3), np.uint8)
    file, stride = _encoded(data, layout), picture.strides[0]
    if not _DECODERS[picture.shape[2]](file, len(file), picture.ctypes.data, picture.nbytes, stride):
        raise ValueError("libwebp cannot decode the picture")
    orientation = _orientation(data, layout.end)
    if has_alpha:
        picture = composite_on_white(picture)
    if layout.frame != layout.canvas:
        # Around the frame the canvas is transparent.
        canvas = np.full((layout.canvas[1], layout.canvas[0], 3), WHITE, np.uint8)
        canvas[layout.top : layout.top + height, layout.left : layout.left + width] = picture[:, :, :3]
        picture = canvas
    return picture, orientation


def _layout(data: bytes) -> _Layout:
    chunks = _chunks(data, FILE_HEADER_BYTES, len(data))
    kind, start, end = next(chunks, (b"", 0, 0))
    if kind in (LOSSY, LOSSLESS):
        width, height, flags = _coded_sides(data, kind, start)
        sides = width, height
        return _Layout(sides, sides, 0, 0, flags, [(start, end)], kind == LOSSLESS, len(data))
    if kind != EXTENDED:
        raise _no_picture()
    flags = data[start + 8]
    canvas = frame = _sides(data, start + 12)
    left = top = 0
    if flags & IS_ANIMATED:
        start, frame_end = next(((start, end) for kind, start, end in chunks if kind == FRAME), (0, 0))
        if not start:
            return _Layout(canvas, canvas, 0, 0, flags, [], True, len(data))
        x, y = _sides(data, start + 8)
        left, top, frame = 2 * (x - 1), 2 * (y - 1), _sides(data, start + 14)
        if left + frame[0] > canvas[0] or top + frame[1] > canvas[1]:
            raise ImageUndecodable("the WebP's first frame exceeds its canvas; save it again")
        chunks = _chunks(data, start + CHUNK_HEADER_BYTES + FRAME_HEADER_BYTES, min(frame_end, len(data)))
    picture: list[tuple[int, int]] = []
    for kind, start, end in chunks:
        if kind == ALPHA:
            picture = [(start, end)]
        elif kind in (LOSSY, LOSSLESS):
            if _coded_sides(data, kind, start)[:2] != frame:
                raise ImageUndecodable("the WebP declares several sizes; save it again")
            return _Layout(canvas, frame, left, top, flags, [*picture, (start, end)], kind == LOSSLESS, end)
    return _Layout(canvas, frame, left, top, flags, [], True, len(data))


def _coded_sides(data: bytes, kind: bytes, start: int) -> tuple[int, int, int]:
    """Width and height in the header of coded pixels, and the flags: whether they have alpha."""
    if kind == LOSSY:
        width, height = struct.unpack_from("<HH", data, start + 14)
        return width & 0x3FFF, height & 0x3FFF, 0
    (bits,) = struct.unpack_from("<I", data, start + 9)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, HAS_ALPHA * (bits >> 28 & 1)


def _lossless_streams(data: bytes, layout: _Layout) -> Iterator[tuple[memoryview, bool]]:
    """The lossless streams of the picture, and whether each has a header: the picture itself, or its alpha."""
    for start, end in layout.chunks:
        content = memoryview(data)[start + CHUNK_HEADER_BYTES : end]
        kind = data[start : start + 4]
        if kind == LOSSLESS:
            yield content, True
        elif kind == ALPHA and content and content[0] & 3 == 1:
            yield content[1:], False


def _has_alpha(data: bytes, layout: _Layout) -> bool:
    """Whether the picture has alpha: an animation's frame has it only where the file declares it."""
    if not layout.chunks or not (layout.still or layout.flags & HAS_ALPHA):
        return False
    start = layout.chunks[-1][0]
    return len(layout.chunks) > 1 or bool(_coded_sides(data, data[start : start + 4], start)[2])


def _encoded(data: bytes, layout: _Layout) -> bytes:
    """A still WebP file of the picture's chunks alone, with alpha where the file has it, or an animation's frame."""
    flags = layout.flags & HAS_ALPHA if layout.still else HAS_ALPHA * (len(layout.chunks) > 1)
    width, height = layout.frame
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks: list[bytes | memoryview] = [memoryview(data)[start:end] for start, end in layout.chunks]
    if len(chunks) > 1 or flags:
        chunks.insert(0, EXTENDED + struct.pack("<IB3x", 10, flags) + sides)
    length = 4 + sum(map(len, chunks))
    # A last byte of padding may be missing.
    return b"".join((b"RIFF", struct.pack("<I", length + (length & 1)), b"WEBP", *chunks, bytes(length & 1)))


def _orientation(data: bytes, start: int) -> int:
    exif = next(((start, end) for kind, start, end in _chunks(data, start, len(data)) if kind == EXIF), None)
    return UPRIGHT if exif is None else exif_orientation(data[exif[0] + CHUNK_HEADER_BYTES : exif[1]])


def _chunks(data: bytes, offset: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk, and where it starts and ends, padding included."""
    for _ in range(MAX_HEADER_PARTS):
        if offset + CHUNK_HEADER_BYTES > end:
            return
        kind, length = struct.unpack_from("<4sI", data, offset)
        chunk_end = offset + CHUNK_HEADER_BYTES + length + (length & 1)
        yield kind, offset, chunk_end
        offset = chunk_end
    raise too_many_parts(ImageFormat.WEBP, "chunks", MAX_HEADER_PARTS)


def _sides(data: bytes, offset: int) -> tuple[int, int]:
    """Two numbers of 24 bits, stored less one."""
    if offset + 6 > len(data):
        raise struct.error("truncated")
    low = int.from_bytes(data[offset : offset + 3], "little")
    return low + 1, int.from_bytes(data[offset + 3 : offset + 6], "little") + 1


def _no_picture() -> ImageUndecodable:
    return ImageUndecodable("the WebP has no picture; send one with a picture")
