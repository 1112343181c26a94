"""PNG files of masks, maps of classes and pictures that are drawn on: made to be fast.

Each value is stored as its difference from the one above it, and zlib codes repetitions of one byte alone. What has
areas of one value or gradients becomes small, in less time than by Pillow, which tries each filter in each row.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

from model.types import UInt8Array

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2
UP = 2
"""The filter that stores differences from the row above."""


def png_bytes(pixels: UInt8Array | npt.NDArray[np.uint16]) -> bytes:
    """A PNG without metadata: grey of uint8 or uint16 (H, W), or RGB of uint8 (H, W, 3)."""
    height, width = pixels.shape[:2]
    stored = np.ascontiguousarray(pixels, ">u2" if pixels.dtype == np.uint16 else np.uint8)
    rows = stored.view(np.uint8).reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = UP
    filtered[:1, 1:] = rows[:1]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    coder = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    colours = GREY if pixels.ndim == 2 else RGB
    header = struct.pack(">IIBBBBB", width, height, 8 * stored.itemsize, colours, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", coder.compress(filtered.data) + coder.flush()), (b"IEND", b"")
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
