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
RARE_JPEGS = {
    "lossless": (
        "/9j/7gAOQWRvYmUAZAAAAAAA/8MAEQgACAAMA1IRAEcRAEIRAP/EABsAAAMBAQEBAQAAAAAAAAAAAAQFBgMCBwAB/9oADANSAEcAQgABAACk"
        "P2XqUQM1Is2z9g5aL1qgIJeGMPprv3uUACACvXsmbuWjfPsVc01c0GGI44gPHGQgo5JrHrTXPLAQQdkzZS0X53kvnOyDAwxS9vuMuQggizmI"
        "4a8xgzRp1f791KxHmKtFMLFoDZmc3btUChclXBMSi6NnqwbO1q5dKyMWjmIURcqePHZXY+5jKYTTnnEgsYdCei2Nw9dNufzGQiPNn7ls2Zs2"
        "jdygmpAQIH4jpAtVJkgjli/9Hv7FYsTGE7NTzMxhWzl2sTI8cx9ySTTNhAAkSBNa3FaURqxYMDjDRFyn7jnTrv8Af37HjAgnfff9STcyX3nW"
        "2FP/AP/Z"
    ),
    "lossless grey": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/wwALCAAIAAwBAREA/8QAGgABAQEBAQEBAAAAAAAAAAAABQQGAwIBAP/aAAgBAQABAAC8nNLMmxTde8J6"
        "eNLZ4yeJbenKRPFn0R9uUV0aA/7EBGprkHVJrHZHMHOe7Bsh62LXzEMpr5qKg0RHfmU3zMjc6bIANxQhYd49ffFPfN+9h//Z"
    ),
    "arithmetic": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5"
        "PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/yQAR"
        "CAAMABQDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD9veNyzVt+S1gTaRVZ+MUg55AimBcWnjvKuRuSKjGQBgw/6Nk2FgyN"
        "o4YfPhmHe9vZoXlMNo2NgmySKy81fHWGRX+Im25ygLW0V/xdWvdZkM2VgdGrOPuDBA4Uf4aia1oi0yBCsKJWitvHsiAtxjV/AFdH3dbFONr/"
        "2Q=="
    ),
    "arithmetic progressive": (
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5"
        "PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjL/ygAR"
        "CAAMABQDASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAfuYdl1lESI0azDP/8wABBAF/9oACAEBAAEFAj1G6LcZnt7UKxM47Mhj/8wA"
        "BBEF/9oACAEDAQE/AcD/zAAEEQX/2gAIAQIBAT8BZ//MAAQQBf/aAAgBAQAGPwIk4NYv1cOCnPeLg0EBswz/zAAEEAX/2gAIAQEAAT8hPEQ1"
        "Y/uYCHgVl6FYqJi6+loh1v4hgoD/2gAMAwEAAgADAAAAEABA/8wABBEF/9oACAEDAQE/EHAq/8wABBEF/9oACAECAQE/EMhxgP/MAAQQBf/a"
        "AAgBAQABPxBosgOF2je7xdWd8ujr5Ui1zhmfR0AkbV2SFdaWChEv+07qjZBs8I8h0qD/2Q=="
    ),
}
"""JPEGs that neither Pillow nor OpenCV writes, in base64: libjpeg-turbo wrote them, of the reference picture."""


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


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""The passes of an interlaced PNG: first row and column, and the steps of both."""


def png(samples: npt.NDArray[Any], depth: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """Grey (H, W) or colours (H, W, 3) of `depth` bits a sample, in unfiltered rows; `chunks` are before the pixels."""
    height, width = samples.shape[:2]
    passes = [samples[top::down, left::right] for top, left, down, right in ADAM7] if interlaced else [samples]
    header = struct.pack(">IIBBBBB", width, height, depth, 0 if samples.ndim == 2 else 2, 0, 0, interlaced)
    pixels = zlib.compress(b"".join(b"\0" + _packed(row, depth) for part in passes if part.size for row in part))
    parts = (png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", pixels), png_chunk(b"IEND", b""))
    return PNG_SIGNATURE + b"".join(parts)


def _packed(row: npt.NDArray[Any], depth: int) -> bytes:
    bits = row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1, dtype=row.dtype) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


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


def run_length_bmp(codes: bytes, size: tuple[int, int], bits: int = 8) -> bytes:
    """A BMP of `size`, (width, height), in run lengths, with a palette of distinct colours."""
    palette = b"".join(bytes([one, 255 - one, one // 2, 0]) for one in range(1 << bits))
    width, height = size
    kind = 1 if bits == 8 else 2
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, kind, len(codes), 0, 0, 0, 0)
    offset = 14 + len(info) + len(palette)
    return struct.pack("<2sIHHI", b"BM", offset + len(codes), 0, 0, offset) + info + palette + codes


def os2_bmp(rows: UInt8Array) -> bytes:
    """A BMP of 24 bits with the oldest header, of rows (H, 3 W), the first at the bottom."""
    height, row_bytes = rows.shape
    pixels = b"".join(row.tobytes() + bytes(-row_bytes % 4) for row in rows)
    info = struct.pack("<IHHHH", 12, row_bytes // 3, height, 1, 24)
    return struct.pack("<2sIHHI", b"BM", 26 + len(pixels), 0, 0, 26) + info + pixels


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
