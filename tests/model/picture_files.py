"""Picture files that no library here writes: BMPs of any mask, PNGs of any depth, GIFs with a screen of their own."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from model.reference import REFERENCE_PICTURE
from model.types import UInt8Array

PHOTO = PIL.Image.open(REFERENCE_PICTURE).convert("RGB").resize((61, 47))
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BIT_FIELDS = 3


def encoded(picture: PIL.Image.Image, image_format: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """An EXIF block with an orientation, a value of 16 bits, or of 32 if `kind` is 4."""
    value = struct.pack(f"{order}HH", orientation, 0) if kind == 3 else struct.pack(f"{order}I", orientation)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return (
        b"Exif\0\0"
        + magic
        + struct.pack(f"{order}IH", 8, 1)
        + struct.pack(f"{order}HHI", 0x0112, kind, 1)
        + value
        + bytes(4)
    )


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: npt.NDArray[Any], depth: int, *chunks: bytes) -> bytes:
    """Grey (H, W) or colours (H, W, 3) of `depth` bits a sample, in unfiltered rows; `chunks` are before the pixels."""
    height, width = samples.shape[:2]
    bits = samples.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1, dtype=samples.dtype) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    header = struct.pack(">IIBBBBB", width, height, depth, 0 if samples.ndim == 2 else 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = (png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b""))
    return PNG_SIGNATURE + b"".join(parts)


def bmp(
    values: npt.NDArray[Any],
    bits: int,
    compression: int = 0,
    masks: Sequence[int] = (),
    *,
    header_bytes: int = 40,
    palette: bytes = b"",
    height: int | None = None,
) -> bytes:
    """A BMP whose rows are those of `values`, the first at the bottom.

    `masks`, of red, green, blue and alpha, are part of headers from 52 bytes on, and follow shorter ones. `height` is
    what the header declares; with a negative one the first row is at the top.
    """
    rows, row_bytes = len(values), values[0].nbytes
    pixels = b"".join(row.tobytes() + bytes(-row_bytes % 4) for row in values)
    width = row_bytes * 8 // bits
    info = struct.pack(
        "<IiiHHIIiiII", header_bytes, width, height or rows, 1, bits, compression, len(pixels), 0, 0, 0, 0
    )
    header = (info + struct.pack(f"<{len(masks)}I", *masks)).ljust(header_bytes, b"\0") + palette
    offset = 14 + len(header)
    return struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset) + header + pixels


def gif_on_screen(gif: bytes, screen: tuple[int, int], corner: tuple[int, int]) -> bytes:
    """A GIF of one frame with another screen; the frame lies at `corner`. Sizes and places are (x, y)."""
    descriptor = 13 + (3 << (gif[10] & 7) + 1 if gif[10] & 0x80 else 0)
    while gif[descriptor : descriptor + 1] == b"!":
        descriptor += 2
        while gif[descriptor]:
            descriptor += 1 + gif[descriptor]
        descriptor += 1
    assert gif[descriptor : descriptor + 1] == b","
    return (
        gif[:6]
        + struct.pack("<HH", *screen)
        + gif[10 : descriptor + 1]
        + struct.pack("<HH", *corner)
        + gif[descriptor + 5 :]
    )


def ycck_jpeg(cmyk: bytes) -> bytes:
    """A CMYK JPEG as a YCCK one: Adobe's segment declares its first three components to be YCbCr."""
    segment = cmyk.index(b"Adobe")
    return cmyk[: segment + 11] + b"\2" + cmyk[segment + 12 :]


def random_array(shape: tuple[int, ...], dtype: type[np.unsignedinteger[Any]] = np.uint8) -> npt.NDArray[Any]:
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def as_file(data: bytes) -> UInt8Array:
    return np.frombuffer(data, np.uint8)
