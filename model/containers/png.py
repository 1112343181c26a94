"""PNG: the still picture's chunks. Text, profiles and animation frames are left out: damage or a compression bomb
there would fail the picture."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL.PngImagePlugin import PngImageFile

from model.containers.header import (
    BLOCK_BYTE_COST,
    DECODED_BYTES,
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
from model.errors import ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.pixels import boxes, pillow_pixels

STILL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""
RGB = 2
"""The colour type of pixels of three samples."""
SPARE_BYTES = 1 << 16
"""Compressed data may be so much longer than twice the rows, which no encoder needs."""
KEYED_BYTES = 9
"""Of a pixel of 16-bit colours with a transparent one: two pictures of Pillow, of the high and of the low bytes."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """`most_bytes` is the limit of compressed data, `depth` the bits of a sample. `low_bytes`: the file has a
    transparent colour of 16 bits a sample, so the low bytes are needed too."""

    most_bytes: int
    depth: int
    low_bytes: bool


def read_header(data: bytes) -> Header:
    """The header of a PNG.

    Raises:
        struct.error, KeyError: damaged.
        UnsupportedFormat: Apple's own form of PNG.
        ImageUndecodable, ImageTooLarge: no pixels; too many chunks.
    """
    for kind, start, _ in _chunks(data, MAX_HEADER_PARTS):
        if kind == b"CgBI":
            raise UnsupportedFormat(
                "this is a PNG in Apple's CgBI form, made for an iOS app; send the PNG that it was made of, or "
                "convert it with xcrun pngcrush -revert-iphone-optimizations"
            )
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, start + 8)
            # Inflating and filters take their time by byte.
            # A row begins with the number of its filter, which needs the row above.
            row_bytes = (CHANNELS[colour] * depth * width + 7) // 8 + 1
            most = 2 * row_bytes * height + SPARE_BYTES
            encoded_bytes = min(len(data), most)
            cost = (0.5 + 2 * bool(interlaced)) * width * height + 1.3 * row_bytes * height + 4 * encoded_bytes
            worst_cost = cost + (BLOCK_BYTE_COST - 4) * encoded_bytes
            pixel_bytes = DECODED_BYTES
            low_bytes = colour == RGB and depth == 16 and _has_colour_key(data)
            if low_bytes:
                cost, worst_cost, pixel_bytes = 2 * cost, 2 * worst_cost, KEYED_BYTES
            layout = _Layout(most, depth, low_bytes)
            return header_of(
                ImageFormat.PNG,
                width,
                height,
                cost,
                worst_cost=worst_cost,
                pixel_bytes=pixel_bytes,
                row_bytes=2 * row_bytes,
                layout=layout,
            )
    raise struct.error("no header")


def load(data: bytes, header: Header) -> tuple[PngImageFile, int]:
    """The picture as it is stored, and its EXIF orientation.

    Raises:
        ImageTooLarge: too many chunks, or too much compressed data for the pixels.
        ImageUndecodable: a chunk has a wrong checksum.
        Exception: what Pillow raises for damaged files.
    """
    layout = header.layout
    assert isinstance(layout, _Layout)
    view = memoryview(data)
    chunks = [view[:8]]
    orientation, encoded_bytes = UPRIGHT, 0
    for kind, start, end in _chunks(data, MAX_PARTS):
        if kind in STILL_CHUNKS:
            encoded_bytes += min(end, len(data)) - start
            chunks.append(view[start:end])
        elif kind == b"eXIf":
            orientation = exif_orientation(data[start + 8 : end - 4])
    if encoded_bytes > layout.most_bytes:
        raise ImageTooLarge(
            f"the PNG has {encoded_bytes:,} bytes; the limit for its pixels is {layout.most_bytes:,}; save it again"
        )
    for chunk in chunks[1:]:
        _check(chunk)
    encoded = b"".join(chunks)
    file = _decoded(encoded, header, low_bytes=False)
    key = file.info.get("transparency")
    if isinstance(key, int) and layout.depth in (2, 4):
        # Pillow spreads the samples over 8 bits, and not the key.
        file.info["transparency"] = (key & (1 << layout.depth) - 1) * (255 // ((1 << layout.depth) - 1))
    elif isinstance(key, tuple) and layout.low_bytes:
        _whiten(file, _decoded(encoded, header, low_bytes=True), key)
    return file, orientation


def _decoded(encoded: bytes, header: Header, *, low_bytes: bool) -> PngImageFile:
    """`low_bytes`: those of 16-bit colours, instead of the high ones."""
    file = PngImageFile(BytesIO(encoded))
    check_size(file, header)
    if low_bytes:
        # The same decoder, as if the samples were stored in the other byte order.
        file.tile = [tile._replace(args="RGB;16L") for tile in file.tile]
    file.load()
    return file


def _whiten(high: PngImageFile, low: PngImageFile, key: tuple[int, int, int]) -> None:
    """Make the pixels of the transparent colour white in `high`. Both have one byte of each sample, the key has two."""
    pixels, low_pixels = pillow_pixels(high), pillow_pixels(low)
    for left, top, right, bottom in boxes(high.width, high.height):
        strip, low_strip = pixels[top:bottom, left:right], low_pixels[top:bottom, left:right]
        transparent = np.full(strip.shape[:2], True)
        for channel, value in enumerate(key):
            transparent &= (strip[:, :, channel] == value >> 8) & (low_strip[:, :, channel] == value & 0xFF)
        strip[transparent] = 255
    del high.info["transparency"]


def _check(chunk: memoryview) -> None:
    """Compare a whole chunk with its checksum. Pillow does not do so for pixels. Raises ImageUndecodable."""
    length, kind = struct.unpack_from(">I4s", chunk)
    if len(chunk) == length + 12 and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        raise ImageUndecodable(
            f"the PNG is damaged: the checksum of a chunk {kind.decode()} is wrong; send the original file"
        )


def _has_colour_key(data: bytes) -> bool:
    for kind, _, _ in _chunks(data, MAX_HEADER_PARTS):
        if kind in (b"tRNS", b"IDAT"):
            return kind == b"tRNS"
    return False


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
