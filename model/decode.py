"""Encoded bytes → Image: uint8 RGB pixels, upright.

The format is detected from the first bytes. Limits are checked from the header, before any pixel is decoded. Of an
animation the first frame is decoded, of several pages the first one.

Pixels are those that a viewer shows: EXIF orientation is applied, transparency is composited on white. Dropping the
alpha channel instead would reveal colours that a cut-out hides. Colour profiles are not applied, as in the pipelines
that the models were trained with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import PIL.Image

from model.containers import bmp, gif, heif, jpeg, png, tiff, webp
from model.containers.header import ACCEPTED, DECODED_BYTES, UPRIGHT, Header, ImageFormat, too_much_work, undecodable
from model.containers.jpeg import Needed
from model.containers.signatures import kind_of
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, OutOfMemory, UnsupportedFormat
from model.pixels import as_array, packed, upright_rgb, upright_size
from model.types import Image, Reader, Size, UInt8Array

# The limits here are checked before. Pillow's own is lower than what a setting may allow.
PIL.Image.MAX_IMAGE_PIXELS = None

COST_PER_PIXEL = 8
"""Largest cost of decoding, for each pixel of the largest picture: with the default of 64 million pixels, some 2 s."""
ROWS_BYTES = 4 << 20
"""Memory for what rows take, at most, beside pixels."""
MIN_DECODE_BYTES, MIN_DECODE_COST = 64 << 20, 50_000_000
"""The limits of memory and work are no lower, so that a low limit of pixels is the same for all formats."""


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Upper limits of encoded bytes and of pixels (height x width).

    From `max_pixels` follow the limits of `Header.decode_bytes` and `Header.worst_cost`: what the largest picture
    takes in its usual forms, 388 MB and some 2 s with the default of 64 million pixels.
    """

    max_bytes: int
    max_pixels: int
    max_decode_bytes: int = field(init=False)
    max_decode_cost: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "max_decode_bytes", max(DECODED_BYTES * self.max_pixels + ROWS_BYTES, MIN_DECODE_BYTES)
        )
        object.__setattr__(self, "max_decode_cost", max(COST_PER_PIXEL * self.max_pixels, MIN_DECODE_COST))


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, upright.

    `source` is Pillow's image in mode RGB, or uint8 (H, W, 3 or 4): RGB, and a fourth channel without meaning.
    `original` is the full upright size. `source` is smaller if the picture was decoded at a reduced scale (see
    `decode_picture`).
    """

    source: PIL.Image.Image | UInt8Array
    original: Size


def read_header(data: bytes, limits: DecodeLimits) -> Header:
    """Read the header and check the limits, without a decoder: some microseconds, whatever the file.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `decode`, so far as the header shows it.
    """
    if not data:
        raise ImageUndecodable(f"the image is empty (0 bytes); send a {ACCEPTED} file")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,}; send a smaller file"
        )
    image_format = _format_of(data)
    try:
        header = _HEADERS[image_format](data)
    except (LookupError, ValueError, ArithmeticError, struct.error) as error:
        raise undecodable(image_format) from error
    check_pixels(header.size, limits)
    if header.decode_bytes > limits.max_decode_bytes:
        raise ImageTooLarge(
            f"decoding this {image_format} takes {header.decode_bytes:,} bytes of memory; the limit is "
            f"{limits.max_decode_bytes:,}; scale it down, or save it as a baseline JPEG"
        )
    if header.worst_cost > limits.max_decode_cost:
        raise too_much_work(header.format, header.worst_cost, limits.max_decode_cost)
    return header


def decode(data: bytes, limits: DecodeLimits, reader: Reader = Reader.PILLOW) -> Image:
    """Decode an image: uint8 (H, W, 3), RGB, upright, contiguous, with the values that `reader` has where they differ.

    Palette, grey, bilevel and CMYK images are converted to RGB. 16-bit samples keep their high byte.

    Raises:
        ImageUndecodable: empty, truncated or corrupt.
        UnsupportedFormat: another format, or a form of these that is not decoded.
        ImageTooLarge: more bytes or pixels than `limits` allow, or decoding would take more memory or work; checked
            before any pixel is decoded.
        OutOfMemory: the memory that decoding takes is not available now.
    """
    return Image(packed(as_array(decode_picture(data, limits, reader=reader).source)))


def decode_picture(
    data: bytes,
    limits: DecodeLimits,
    needed: Needed | None = None,
    header: Header | None = None,
    reader: Reader = Reader.PILLOW,
) -> Picture:
    """Decode an image and keep it in the decoder's memory: resizing reads it there.

    `needed` maps the upright size to the size that the caller resizes to. A JPEG is then decoded at 1/2, 1/4 or 1/8
    scale if that is still as large (libjpeg's scaling in the DCT domain), which takes less time. The pixels are close
    to, not equal to, those of the full picture resized.

    `header` is that of `data`, where the caller has read it already. `reader` is as for `decode`.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge, OutOfMemory: as `decode`.
    """
    if header is None:
        header = read_header(data, limits)
    source: PIL.Image.Image | UInt8Array
    original = header.size
    try:
        if header.format is ImageFormat.JPEG:
            source, orientation = jpeg.load(data, header, limits.max_decode_cost, needed, reader)
        elif header.format is ImageFormat.BMP:
            source, orientation = bmp.load(data, header, reader)
        else:
            source, orientation = _LOADERS[header.format](data, header)
        is_rgb = isinstance(source, np.ndarray) or (source.mode == "RGB" and not source.has_transparency_data)
        if orientation != UPRIGHT or not is_rgb:
            source = upright_rgb(source, orientation)
            original = upright_size(original, orientation)
        return Picture(source, original)
    except ConvMLPError:
        raise
    except MemoryError as error:
        raise _out_of_memory(header) from error
    except Exception as error:
        # Decoders do not document what damaged data raises: a dozen exception types. Some of them raise the
        # same where they got no memory.
        if not _is_available(header.decode_bytes):
            raise _out_of_memory(header) from error
        raise undecodable(header.format) from error


def depends_on_reader(header: Header) -> bool:
    """Whether the readers see other pixels in the picture with this header."""
    return jpeg.depends_on_reader(header) if header.format is ImageFormat.JPEG else bmp.depends_on_reader(header)


def check_pixels(size: Size, limits: DecodeLimits) -> None:
    """Check a size against the limits. Raises ImageTooLarge."""
    pixels = size.width * size.height
    if pixels > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {size.width} x {size.height} = {pixels:,} pixels; "
            f"the limit is {limits.max_pixels:,}; scale it down"
        )


def _format_of(data: bytes) -> ImageFormat:
    if data.startswith(b"\xff\xd8\xff"):
        return ImageFormat.JPEG
    if data.startswith(b"\x89PNG"):
        return ImageFormat.PNG
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return ImageFormat.WEBP
    if data.startswith(b"GIF8"):
        return ImageFormat.GIF
    if data.startswith(b"BM"):
        return ImageFormat.BMP
    if data.startswith(b"ftyp", 4):
        declared = heif.declared_format(data)
        if declared is not None:
            return declared
    if data.startswith(tiff.SIGNATURES):
        return ImageFormat.TIFF
    kind = kind_of(data)
    if kind is not None:
        raise UnsupportedFormat(f"this is {kind}, which is not supported; send one of {ACCEPTED}")
    raise UnsupportedFormat(f"the image format is not supported; send one of {ACCEPTED}")


def _out_of_memory(header: Header) -> OutOfMemory:
    return OutOfMemory(
        f"decoding this {header.format} takes up to {header.decode_bytes:,} bytes of memory, which are not available "
        "now; try again later, or send a smaller picture"
    )


def _is_available(size: int) -> bool:
    try:
        np.empty(size, np.uint8)
    except MemoryError:
        return False
    return True


_HEADERS: dict[ImageFormat, Callable[[bytes], Header]] = {
    ImageFormat.JPEG: jpeg.read_header,
    ImageFormat.PNG: png.read_header,
    ImageFormat.WEBP: webp.read_header,
    ImageFormat.BMP: bmp.read_header,
    ImageFormat.GIF: gif.read_header,
    ImageFormat.AVIF: heif.read_header,
    ImageFormat.HEIC: heif.read_header,
    ImageFormat.TIFF: tiff.read_header,
}
_LOADERS: dict[ImageFormat, Callable[[bytes, Header], tuple[PIL.Image.Image | UInt8Array, int]]] = {
    ImageFormat.PNG: png.load,
    ImageFormat.WEBP: webp.load,
    ImageFormat.GIF: gif.load,
    ImageFormat.AVIF: heif.load,
    ImageFormat.HEIC: heif.load,
    ImageFormat.TIFF: tiff.load,
}
