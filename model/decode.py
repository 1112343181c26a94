"""Encoded bytes → Image: uint8 RGB pixels, upright.

The format is detected from the first bytes. Limits are checked from the header, before any pixel is decoded. Five
formats are supported and no others: each parser is attack surface, and TIFF's alone (tiles, strips, a dozen
compressions) is larger than the rest together. Of an animation the first frame is decoded.

Pixels are those that a viewer shows: EXIF orientation is applied, transparency is composited on white. Dropping the
alpha channel instead would reveal colours that a cut-out hides. Colour profiles are not applied, as in the pipelines
that the models were trained with.
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
MIN_SCAN_BYTES = 10
"""Bytes of the shortest JPEG scan: a header of one component without data."""
MAX_SCANNED_PIXELS = 5_000_000_000
"""Scans of a JPEG times its pixels. Each scan passes over the whole picture and may be a few bytes long, so neither
the file's size nor the picture's bounds the work. A progressive file has about ten scans."""

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
"""Orientations that swap width and height."""


class ImageFormat(StrEnum):
    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    BMP = "BMP"
    GIF = "GIF"


ACCEPTED = ", ".join(ImageFormat)


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Upper limits of encoded bytes and of pixels (height x width)."""

    max_bytes: int
    max_pixels: int


@dataclass(frozen=True, slots=True)
class Header:
    """An image's header. `size` is as stored: EXIF orientation is not applied."""

    format: ImageFormat
    size: Size
    decode_bytes: int = 0
    decode_cost: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture as Pillow holds it: RGB, upright.

    `original` is the full upright size. `rgb` is smaller if the picture was decoded at a reduced scale (see
    `decode_picture`).
    """

    rgb: PIL.Image.Image
    original: Size


def probe(data: bytes, limits: DecodeLimits) -> Header:
    """Read the header and check the limits. No pixel is decoded.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `decode`, so far as the header shows it.
    """
    image_format, file = _open(data, limits)
    return Header(image_format, Size(file.height, file.width))


def read_header(data: bytes, limits: DecodeLimits) -> Header:
    header = probe(data, limits)
    pixels = header.size.height * header.size.width
    return Header(header.format, header.size, 6 * pixels, pixels)


def decode(data: bytes, limits: DecodeLimits) -> Image:
    """Decode an image: uint8 (H, W, 3), RGB, upright, contiguous.

    Palette, grey, bilevel and CMYK images are converted to RGB. 16-bit samples keep their high byte.

    Raises:
        ImageUndecodable: empty, truncated or corrupt.
        UnsupportedFormat: not JPEG, PNG, WebP, GIF or (not run-length encoded) BMP.
        ImageTooLarge: more bytes or pixels than `limits` allow; checked before any pixel is decoded.
    """
    return Image(np.ascontiguousarray(decode_picture(data, limits).rgb))


def decode_picture(data: bytes, limits: DecodeLimits, needed: Callable[[Size], Size] | None = None) -> Picture:
    """Decode an image and keep it as Pillow's, which resizing by Pillow needs.

    `needed` maps the upright size to the size that the caller resizes to. A JPEG is then decoded at 1/2, 1/4 or 1/8
    scale if that is still as large (libjpeg's scaling in the DCT domain), which takes less time. The pixels are close
    to, not equal to, those of the full picture resized.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `decode`.
    """
    image_format, file = _open(data, limits)
    with _parser_errors(image_format, limits):
        stored = None if needed is None or image_format is not ImageFormat.JPEG else _scale(file, needed)
        file.load()
        # Again: the decoded size may differ from the header's.
        check_pixels(Size(file.height, file.width), limits)
        # Read after the pixels: a PNG may have its EXIF block behind them.
        orientation = _orientation(file.info.get("exif", b""))
        rgb = _rgb(file)
        if orientation in UPRIGHT:
            rgb = rgb.transpose(UPRIGHT[orientation])
        return Picture(rgb, _upright(stored or file.size, orientation))


def _scale(file: ImageFile, needed: Callable[[Size], Size]) -> tuple[int, int]:
    """Set a JPEG's decoding scale to the smallest that is large enough; return its full (width, height) as stored."""
    width, height = file.size
    orientation = _orientation(file.info.get("exif", b""))
    needed_size = needed(_upright((width, height), orientation))
    file.draft(
        file.mode,
        (needed_size.height, needed_size.width) if orientation in SIDEWAYS else (needed_size.width, needed_size.height),
    )
    return width, height


def _upright(size: tuple[int, int], orientation: int) -> Size:
    """A stored (width, height) → the upright size."""
    return Size(*size) if orientation in SIDEWAYS else Size(*reversed(size))


def _open(data: bytes, limits: DecodeLimits) -> tuple[ImageFormat, ImageFile]:
    # Pillow's `open` checks sizes against a global limit of its own; its parsers, called directly, do not.
    if not data:
        raise ImageUndecodable(f"the image is empty (0 bytes); send a {ACCEPTED} file")
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes; the limit is {limits.max_bytes:,}; send a smaller file"
        )
    image_format = _format_of(data)
    with _parser_errors(image_format, limits):
        file = PARSERS[image_format](data)
    check_pixels(Size(file.height, file.width), limits)
    if image_format is ImageFormat.JPEG:
        _check_scans(data, file)
    return image_format, file


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
    raise UnsupportedFormat(f"the image format is not supported; send one of {ACCEPTED}")


@contextmanager
def _parser_errors(image_format: ImageFormat, limits: DecodeLimits) -> Iterator[None]:
    """Pillow does not document what damaged data raises: about a dozen exception types, which all mean the same."""
    try:
        yield
    except ConvMLPError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(
            f"the {image_format} declares too many pixels; the limit is {limits.max_pixels:,}; scale it down"
        ) from error
    except Exception as error:
        raise ImageUndecodable(f"the {image_format} is truncated or corrupt; send the whole file") from error


def _check_scans(data: bytes, file: ImageFile) -> None:
    # A short file cannot have so many scans; skip the count.
    if len(data) // MIN_SCAN_BYTES * file.width * file.height <= MAX_SCANNED_PIXELS:
        return
    # Entropy-coded data never contains these two bytes; a few in metadata do not matter.
    scans = data.count(b"\xff\xda")
    if scans * file.width * file.height > MAX_SCANNED_PIXELS:
        raise ImageUndecodable(
            f"the JPEG has {scans} scans of {file.width} x {file.height} pixels, too many; save it as a baseline JPEG"
        )


class _Jpeg(JpegImageFile):
    def _open(self) -> None:
        # If a file states no density, the parser looks for one in the EXIF block and warns on stderr about damage
        # there. A density set beforehand prevents that.
        self.info["dpi"] = (72, 72)
        super()._open()


def _open_png(data: bytes) -> ImageFile:
    # Drop text, profiles and animation frames: damage there, or a compression bomb, would fail the still picture.
    chunks = [data[:8]]
    offset = 8
    while offset + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        end = offset + 12 + length
        if data[offset + 4 : offset + 8] in PNG_STILL_CHUNKS:
            chunks.append(data[offset:end])
        offset = end
    return PngImageFile(BytesIO(b"".join(chunks)))


def _open_bmp(data: bytes) -> ImageFile:
    file = BmpImageFile(BytesIO(data))
    if file.tile[0].codec_name == "bmp_rle":
        # Pillow decodes these pixel by pixel in Python: seconds of the interpreter for a file of 100 bytes.
        raise UnsupportedFormat(f"run-length encoded BMP is not supported; send one of {ACCEPTED}, BMP uncompressed")
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
    """The orientation in an EXIF block's first directory; 1 (upright) if there is none or the block is damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            offset = directory + 2 + 12 * entry
            tag, kind = struct.unpack_from(f"{order}HH", tiff, offset)
            if tag == EXIF_ORIENTATION:
                # The standard asks for a 16-bit value; some writers make it 32-bit.
                (value,) = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", tiff, offset + 8)
                return int(value)
    except struct.error:
        return 1
    return 1
