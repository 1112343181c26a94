"""The header of an encoded image, in any format."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec

from PIL.ImageFile import ImageFile

from model.errors import ImageTooLarge, ImageUndecodable
from model.types import Size

MAX_PARTS = 16_384
"""Parts of a container (segments, chunks) that are read. A PNG of 20 MiB in chunks of 8 KiB has 2,560."""
MAX_HEADER_PARTS = 1024
"""Parts that are read for the header. A JPEG has some ten; a long profile or description is divided among hundreds."""

DECODED_BYTES = 6
"""Bytes that a pixel takes at most while it is decoded, converted and turned upright, in most formats: Pillow's four,
or an RGB picture and its turned copy."""

BLOCK_BYTE_COST = 10
"""Of a byte of deflate's shortest blocks, each of which has Huffman tables of its own. Usual blocks have thousands of
bytes. Blocks are not found without inflating all before them, so their number cannot be bounded."""

POINTER_BYTES, ROW_COST = 8, 9
"""Of each row, which Pillow finds by a pointer. They matter for pictures that are a few pixels wide."""

EXIF_ORIENTATION = 0x0112
UPRIGHT = 1


class ImageFormat(StrEnum):
    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    BMP = "BMP"
    GIF = "GIF"
    AVIF = "AVIF"
    HEIC = "HEIC"
    TIFF = "TIFF"


HEIC_EXTRA = "heif"
"""The extra of this package that installs HEIC's decoder."""
HAS_HEIC = find_spec("pi_heif") is not None

ACCEPTED = ", ".join(one for one in ImageFormat if one is not ImageFormat.HEIC or HAS_HEIC)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of an encoded image.

    `size` is as stored: EXIF orientation is not applied. `decode_bytes` is an upper bound of the memory that decoding,
    conversion and turning take at their peak, in bytes, without the encoded file. `decode_cost` is their usual CPU
    time, in pixels of a baseline JPEG. `worst_cost` is that of the worst compressed data that a file with this header
    and of this length can have; of a JPEG in several scans, an estimate, which decoding replaces by the true one.
    `layout` is what the format's own loader needs to know about the file.
    """

    format: ImageFormat
    size: Size
    decode_bytes: int
    decode_cost: int
    worst_cost: int
    layout: object = field(default=None, repr=False, compare=False)


def header_of(
    image_format: ImageFormat,
    width: int,
    height: int,
    cost: float,
    *,
    worst_cost: float = 0,
    pixel_bytes: float = DECODED_BYTES,
    row_bytes: float = 0,
    layout: object = None,
) -> Header:
    """A header. The decoder takes `pixel_bytes` for each pixel, and `row_bytes` once. `worst_cost` counts where it is
    more than `cost`.

    Raises:
        ImageUndecodable: no pixels.
    """
    if width <= 0 or height <= 0:
        raise ImageUndecodable(f"the {image_format} declares {width} x {height} pixels; send a picture with pixels")
    decode_bytes = pixel_bytes * width * height + POINTER_BYTES * height + row_bytes
    rows = ROW_COST * height
    worst_cost = max(worst_cost, cost)
    return Header(
        image_format, Size(height, width), int(decode_bytes), int(cost + rows), int(worst_cost + rows), layout
    )


def check_size(file: ImageFile, header: Header) -> None:
    """Check that a decoder found the size that the limits were checked with. Raises ImageUndecodable."""
    if file.size != (header.size.width, header.size.height):
        raise ImageUndecodable(f"the {header.format} declares several sizes; save it again")


def too_many_parts(image_format: str, parts: str, limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"the {image_format} has more than {limit:,} {parts}, the limit; save it again with fewer")


def too_much_work(what: str, cost: int, limit: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"decoding this {what} takes the work of {cost:,} pixels of a baseline JPEG; "
        f"the limit is {limit:,}; scale it down, or save it as a baseline JPEG"
    )


def undecodable(image_format: ImageFormat) -> ImageUndecodable:
    return ImageUndecodable(f"the {image_format} is truncated or corrupt; send the whole file")


def exif_orientation(exif: bytes) -> int:
    """The orientation (1 to 8) in an EXIF block's first directory; 1, upright, if it has none or is damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return UPRIGHT
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(min(entries, MAX_PARTS)):
            offset = directory + 2 + 12 * entry
            tag, kind = struct.unpack_from(f"{order}HH", tiff, offset)
            if tag == EXIF_ORIENTATION:
                # The standard asks for a 16-bit value; some writers make it 32-bit.
                (value,) = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", tiff, offset + 8)
                return int(value) if 1 <= value <= 8 else UPRIGHT
    except struct.error:
        return UPRIGHT
    return UPRIGHT
