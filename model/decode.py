"""Encoded bytes → Image: the format is read from the bytes, the limits from the header, the whole picture at once.

Five formats and no others: each parser is one more way in for hostile bytes, and TIFF's alone (tiles, strips,
a dozen compressions) is larger than the rest together. Of an animation the first, or still, picture counts.

What is seen is what a viewer shows: EXIF orientation applied, transparent parts on white. Plain RGB conversion
would uncover the colours that a cut-out hides, and an answer would depend on what nobody sees. Colour profiles
are not applied, as in the pipelines that the models were trained with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO

import numpy as np
import PIL.Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.types import Image, Size

PNG_STILL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND"})
SMALLEST_SCAN = 10
"""Bytes of a JPEG's scan: a header for one component, and nothing in it."""
MAX_SCANNED_PIXELS = 5_000_000_000
"""Scans of a JPEG times its pixels. Each scan is a pass over the whole picture and may be a few bytes long, so
neither the file's size nor the picture's bounds the work. A progressive file has about ten scans."""

EXIF_ORIENTATION = 0x0112
UPRIGHT = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations that exchange width and height."""


class ImageFormat(StrEnum):
    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    BMP = "BMP"
    GIF = "GIF"


ACCEPTED = ", ".join(ImageFormat)


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """The most that a picture may have of encoded bytes and of pixels (height x width)."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture says of itself before it is decoded; `size` is as stored, EXIF orientation not applied."""

    format: ImageFormat
    size: Size


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture as Pillow holds it: RGB, upright. `original` is the size that it has in its file, upright;
    one that was decoded smaller (see `decode_picture`) has fewer pixels."""

    rgb: PIL.Image.Image
    original: Size


def probe(data: bytes, limits: DecodeLimits) -> Header:
    """Read the header alone and hold it against the limits; no pixel is decoded.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `decode`, as far as the header shows it.
    """
    image_format, file = _open(data, limits)
    return Header(image_format, Size(file.height, file.width))


def decode(data: bytes, limits: DecodeLimits) -> Image:
    """Decode a picture completely: uint8 (H, W, 3), RGB, upright, contiguous.

    Palettes, grey, bilevel and CMYK become RGB; of 16-bit samples the high byte is kept.

    Raises:
        ImageUndecodable: empty, truncated or corrupt.
        UnsupportedFormat: not JPEG, PNG, WebP, GIF or (not run-length encoded) BMP.
        ImageTooLarge: more bytes or pixels than `limits` allow, found before any pixel is decoded.
    """
    return Image(np.ascontiguousarray(decode_picture(data, limits).rgb))


def decode_picture(data: bytes, limits: DecodeLimits, needed: Callable[[Size], Size] | None = None) -> Picture:
    """The same before its pixels are an array, for whoever resizes it by Pillow.

    `needed` says of a picture's upright size in which one it will be used. With it a JPEG is decoded at a half, a
    quarter or an eighth of its size where that is still as large: its DCT blocks are made smaller (libjpeg's scaling),
    for a part of the time. The pixels are then not those of the whole picture, resized, but much like them.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `decode`.
    """
    image_format, file = _open(data, limits)
    with _parser_errors_translated(image_format, limits):
        stored = None if needed is None or image_format is not ImageFormat.JPEG else _scale(file, needed)
        file.load()
        # Once more, for a header that lied.
        check_pixels(Size(file.height, file.width), limits)
        # A PNG may carry its EXIF behind the pixels, so it is looked at only now.
        orientation = _orientation(file.info.get("exif", b""))
        rgb = _rgb(file)
        if orientation in UPRIGHT:
            rgb = rgb.transpose(UPRIGHT[orientation])
        return Picture(rgb, _upright(stored or file.size, orientation))


def _scale(file: ImageFile, needed: Callable[[Size], Size]) -> tuple[int, int]:
    """Have a JPEG decoded no larger than needed; its own width and height."""
    width, height = file.size
    orientation = _orientation(file.info.get("exif", b""))
    wanted = needed(_upright((width, height), orientation))
    file.draft(file.mode, (wanted.height, wanted.width) if orientation in SIDEWAYS else (wanted.width, wanted.height))
    return width, height


def _upright(size: tuple[int, int], orientation: int) -> Size:
    """`size` as Pillow has it: width, height."""
    return Size(*size) if orientation in SIDEWAYS else Size(*reversed(size))


def _open(data: bytes, limits: DecodeLimits) -> tuple[ImageFormat, ImageFile]:
    # Pillow's own `open` would warn about large pictures by limits of its own, kept in a global; its parsers,
    # called directly, leave the judgement to us.
    if not data:
        raise ImageUndecodable(f"the image is empty (0 bytes); send a whole file, one of {ACCEPTED}")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes, at most {limits.max_bytes:,} are accepted; send a smaller file"
        )
    image_format = _format_of(data)
    with _parser_errors_translated(image_format, limits):
        file = PARSERS[image_format](data)
    check_pixels(Size(file.height, file.width), limits)
    if image_format is ImageFormat.JPEG:
        _check_scans(data, file)
    return image_format, file


def check_pixels(size: Size, limits: DecodeLimits) -> None:
    """Raises ImageTooLarge: more pixels than `limits` allow."""
    pixels = size.width * size.height
    if pixels > limits.max_pixels:
        raise ImageTooLarge(
            f"the image has {size.width} x {size.height} = {pixels:,} pixels, at most {limits.max_pixels:,} are "
            "accepted; send it scaled down"
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
    raise UnsupportedFormat(f"the bytes are of no image format that is read here; send one of {ACCEPTED}")


@contextmanager
def _parser_errors_translated(image_format: ImageFormat, limits: DecodeLimits) -> Iterator[None]:
    """Pillow promises nothing of what damaged data raises; a dozen kinds are seen and all mean the same."""
    try:
        yield
    except ConvMLPError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(
            f"the {image_format} declares more pixels than can be decoded, at most {limits.max_pixels:,} are "
            "accepted; send it scaled down"
        ) from error
    except Exception as error:
        raise ImageUndecodable(f"the {image_format} is truncated or corrupt; send the whole file, unchanged") from error


def _check_scans(data: bytes, file: ImageFile) -> None:
    # A short file is spared the count: it has no room for so many.
    if len(data) // SMALLEST_SCAN * file.width * file.height <= MAX_SCANNED_PIXELS:
        return
    # Entropy-coded data never holds these two bytes; the few that chance adds in metadata do no harm.
    scans = data.count(b"\xff\xda")
    if scans * file.width * file.height > MAX_SCANNED_PIXELS:
        raise ImageUndecodable(
            f"the JPEG draws its {file.width} x {file.height} pixels in {scans} scans, more than any encoder "
            "needs; save it again as a plain one"
        )


class _Jpeg(JpegImageFile):
    def _open(self) -> None:
        # Where a file states no density the parser looks for one in the EXIF block, and damage there becomes a
        # warning, in every thread's stderr. A density that is known already keeps it from looking.
        self.info["dpi"] = (72, 72)
        super()._open()


def _open_png(data: bytes) -> ImageFile:
    # Text, profiles and animation frames are no part of the still picture; damaged or made to inflate, they
    # would cost it its answer.
    chunks = [data[:8]]
    at = 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if data[at + 4 : at + 8] in PNG_STILL_CHUNKS:
            chunks.append(data[at:end])
        at = end
    return PngImageFile(BytesIO(b"".join(chunks)))


def _open_bmp(data: bytes) -> ImageFile:
    file = BmpImageFile(BytesIO(data))
    if file.tile[0].codec_name == "bmp_rle":
        # Pillow decodes these pixel by pixel in Python: seconds of the interpreter for a file of 100 bytes.
        raise UnsupportedFormat(f"run-length encoded BMP is not read; send it uncompressed, or one of {ACCEPTED}")
    return file


PARSERS: dict[ImageFormat, Callable[[bytes], ImageFile]] = {
    ImageFormat.JPEG: lambda data: _Jpeg(BytesIO(data)),
    ImageFormat.PNG: _open_png,
    ImageFormat.WEBP: lambda data: WebPImageFile(BytesIO(data)),
    ImageFormat.BMP: _open_bmp,
    ImageFormat.GIF: lambda data: GifImageFile(BytesIO(data)),
}


def _rgb(file: PIL.Image.Image) -> PIL.Image.Image:
    if file.mode == "I;16":
        # Pillow's own conversion clips at 255. The high byte is also what its parsers keep of 16-bit colour.
        high = (np.asarray(file) >> 8).astype(np.uint8)
        return PIL.Image.fromarray(high).convert("RGB")
    if file.has_transparency_data:
        rgba = file.convert("RGBA")
        on_white = PIL.Image.new("RGB", file.size, (255, 255, 255))
        on_white.paste(rgba, mask=rgba)
        return on_white
    return file if file.mode == "RGB" else file.convert("RGB")


def _orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block's first directory; 1 (upright) where it has none or is damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            at = directory + 2 + 12 * entry
            tag, kind = struct.unpack_from(f"{order}HH", tiff, at)
            if tag == EXIF_ORIENTATION:
                # The standard says a 16-bit value; some writers make it 32-bit.
                (value,) = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", tiff, at + 8)
                return int(value)
    except struct.error:
        return 1
    return 1
