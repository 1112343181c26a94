"""Encoded bytes → Image: uint8 RGB pixels, upright.

The format is detected from the first bytes. Limits are checked from the header, before any pixel is decoded. Five
formats are supported and no others: each parser is attack surface, and TIFF's alone (tiles, strips, a dozen
compressions) is larger than the rest together. Of an animation the first frame is decoded.

Pixels are those that a viewer shows: EXIF orientation is applied, transparency is composited on white. Dropping the
alpha channel instead would reveal colours that a cut-out hides. Colour profiles are not applied, as in the pipelines
that the models were trained with.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import PIL.Image
from PIL.JpegImagePlugin import JpegImageFile

from model.containers import bmp, gif, png, webp
from model.containers.header import (
    ACCEPTED,
    DECODED_BYTES,
    MAX_HEADER_PARTS,
    MAX_PARTS,
    POINTER_BYTES,
    UPRIGHT,
    Header,
    ImageFormat,
    exif_orientation,
    too_many_parts,
)
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, OutOfMemory, UnsupportedFormat
from model.pixels import PIXEL_BYTES, SIDEWAYS, as_array, packed, upright_rgb
from model.types import Image, Size, UInt8Array

EOI, SOS, APP1 = 0xD9, 0xDA, 0xE1
TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
"""Markers of Huffman and arithmetic tables, quantisation tables, and the distance of restarts."""
FRAMES = frozenset(range(0xC0, 0xD0)) - TABLES - {0xC8}
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
ARITHMETIC = frozenset(range(0xC9, 0xD0)) - TABLES
DECODED = FRAMES | TABLES | {SOS}
APPLICATIONS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
"""Application segments that define how colours are coded, and how they begin."""
BARE_MARKERS = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
"""Markers without a segment. Zero follows a byte 0xFF that is data."""
NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")
SEARCHED_BYTES = 1 << 18
"""At a time: a search holds the GIL, for some milliseconds at worst."""
SAMPLE_COST, SCANNED_COST = 0.6, 0.2
"""Of each sample, and of each that one of several scans passes over."""
USUAL_SCANS = 5
"""Times that the scans of a progressive JPEG pass over all its samples, as usual encoders write it: in ten scans, most
of them of one component."""

COST_PER_PIXEL = 8
"""Largest cost of decoding, for each pixel of the largest picture: with the default of 64 million pixels, some 2 s."""
ROWS_BYTES = 4 << 20
"""Memory for what rows take, at most, beside pixels."""
MIN_DECODE_BYTES, MIN_DECODE_COST = 64 << 20, 50_000_000
"""The limits of memory and work are no lower, so that a low limit of pixels is the same for all formats."""

Needed = Callable[[Size], Size]


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Upper limits of encoded bytes and of pixels (height x width).

    From `max_pixels` follow the limits of `Header.decode_bytes` and `Header.decode_cost`: what the largest picture
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
        raise _undecodable(image_format) from error
    check_pixels(header.size, limits)
    if header.decode_bytes > limits.max_decode_bytes:
        raise ImageTooLarge(
            f"decoding this {image_format} takes {header.decode_bytes:,} bytes of memory; the limit is "
            f"{limits.max_decode_bytes:,}; scale it down, or save it as a baseline JPEG"
        )
    if header.decode_cost > limits.max_decode_cost:
        raise _too_much_work(header.format, header.decode_cost, limits)
    return header


def decode(data: bytes, limits: DecodeLimits) -> Image:
    """Decode an image: uint8 (H, W, 3), RGB, upright, contiguous.

    Palette, grey, bilevel and CMYK images are converted to RGB. 16-bit samples keep their high byte.

    Raises:
        ImageUndecodable: empty, truncated or corrupt.
        UnsupportedFormat: not JPEG, PNG, WebP, GIF or (not run-length encoded) BMP.
        ImageTooLarge: more bytes or pixels than `limits` allow, or decoding would take more memory or work; checked
            before any pixel is decoded.
        OutOfMemory: the memory that decoding takes is not available now.
    """
    return Image(packed(as_array(decode_picture(data, limits).source)))


def decode_picture(
    data: bytes, limits: DecodeLimits, needed: Needed | None = None, header: Header | None = None
) -> Picture:
    """Decode an image and keep it in the decoder's memory: resizing reads it there.

    `needed` maps the upright size to the size that the caller resizes to. A JPEG is then decoded at 1/2, 1/4 or 1/8
    scale if that is still as large (libjpeg's scaling in the DCT domain), which takes less time. The pixels are close
    to, not equal to, those of the full picture resized.

    `header` is that of `data`, where the caller has read it already.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge, OutOfMemory: as `decode`.
    """
    if header is None:
        header = read_header(data, limits)
    try:
        if header.format is ImageFormat.JPEG:
            source, orientation = _load_jpeg(data, limits, header, needed)
        else:
            source, orientation = _LOADERS[header.format](data, header)
        if (
            orientation != UPRIGHT
            or isinstance(source, np.ndarray)
            or source.mode != "RGB"
            or source.has_transparency_data
        ):
            source = upright_rgb(source, orientation)
        return Picture(source, _upright(header.size, orientation))
    except ConvMLPError:
        raise
    except MemoryError as error:
        raise _out_of_memory(header) from error
    except Exception as error:
        # Decoders do not document what damaged data raises: a dozen exception types. Some of them raise the
        # same where they got no memory.
        if not _is_available(header.decode_bytes):
            raise _out_of_memory(header) from error
        raise _undecodable(header.format) from error


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


def _upright(size: Size, orientation: int) -> Size:
    """A stored size → the upright one, or back."""
    return Size(size.width, size.height) if orientation in SIDEWAYS else size


def _too_much_work(what: str, cost: int, limits: DecodeLimits) -> ImageTooLarge:
    return ImageTooLarge(
        f"decoding this {what} takes the work of {cost:,} pixels of a baseline JPEG; "
        f"the limit is {limits.max_decode_cost:,}; scale it down, or save it as a baseline JPEG"
    )


def _undecodable(image_format: ImageFormat) -> ImageUndecodable:
    return ImageUndecodable(f"the {image_format} is truncated or corrupt; send the whole file")


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


@dataclass(frozen=True, slots=True)
class _JpegLayout:
    """What a JPEG has before the data of its first scan.

    `segments` are (marker, start, end). The picture has `samples`, in whole blocks; a component has `unit` of them for
    each block that its sampling has in a group: its two factors, of 4 bits each. `several_scans`: the decoder keeps
    the whole picture's coefficients until the last one.
    """

    segments: list[tuple[int, int, int]]
    components: bytes
    samplings: bytes
    unit: int
    samples: int
    several_scans: bool
    cost: float
    """Without that of several scans."""


def _jpeg_header(data: bytes) -> Header:
    """Raises what `read_header` catches, ImageUndecodable or ImageTooLarge."""
    segments: list[tuple[int, int, int]] = []
    frame = 0
    offset = 2
    for _ in range(MAX_HEADER_PARTS):
        if data[offset] != 0xFF:
            # Decoders skip what stands between segments.
            offset = data.index(b"\xff", offset)
        marker = data[offset + 1]
        if marker == 0xFF or marker in BARE_MARKERS:
            offset += 1 if marker == 0xFF else 2
            continue
        start = offset
        offset += 2 + (data[start + 2] << 8 | data[start + 3])
        if marker == EOI or offset < start + 4 or offset > len(data):
            raise _undecodable(ImageFormat.JPEG)
        segments.append((marker, start, offset))
        if marker in FRAMES:
            if frame:
                raise ImageUndecodable("the JPEG has several frame headers; save it again")
            frame = marker
            height, width, number = struct.unpack_from(">HHB", data, start + 5)
            components, samplings = data[start + 10 : offset : 3], data[start + 11 : offset : 3]
        elif marker == SOS:
            break
    else:
        raise too_many_parts(ImageFormat.JPEG, "segments before its first scan", MAX_HEADER_PARTS)
    if not frame or len(samplings) != number or not height or not width:
        raise ImageUndecodable("the JPEG has no frame header, or one without pixels; send the whole file")
    across, down, blocks = max(samplings) >> 4, 0, 0
    for sampling in samplings:
        down = max(down, sampling & 15)
        blocks += (sampling >> 4) * (sampling & 15)
    unit = 64 * -(-width // (8 * across)) * -(-height // (8 * down))
    samples = unit * blocks
    several_scans = frame in PROGRESSIVE or data[segments[-1][1] + 4] < number
    byte_cost = 24 if frame in ARITHMETIC else 12 if frame in PROGRESSIVE else 3
    cost = SAMPLE_COST * samples + byte_cost * len(data)
    layout = _JpegLayout(segments, components, samplings, unit, samples, several_scans, cost)
    decode_bytes = DECODED_BYTES * height * width + POINTER_BYTES * height
    if several_scans:
        # Coefficients have two bytes each; the picture is beside them.
        decode_bytes = max(decode_bytes, 2 * samples + (PIXEL_BYTES if number > 1 else 1) * height * width)
        cost += USUAL_SCANS * SCANNED_COST * samples
    return Header(ImageFormat.JPEG, Size(height, width), decode_bytes, int(cost), layout)


def _load_jpeg(
    data: bytes, limits: DecodeLimits, header: Header, needed: Needed | None
) -> tuple[PIL.Image.Image | UInt8Array, int]:
    """The picture as it is stored, and its EXIF orientation. The decoder gets only what decoding needs."""
    layout = header.layout
    assert isinstance(layout, _JpegLayout)
    parts: list[bytes | memoryview] = [b"\xff\xd8"]
    view = memoryview(data)
    exif = b""
    for marker, start, end in layout.segments:
        if marker in DECODED or (marker in APPLICATIONS and data.startswith(APPLICATIONS[marker], start + 4)):
            parts.append(view[start:end])
        elif marker == APP1 and data.startswith(b"Exif\0\0", start + 4):
            # A long block continues in further segments.
            exif += data[start + 10 : end]
    if layout.several_scans:
        parts[-1:] = _scans(view, layout, limits)
    else:
        parts.append(view[end:])
    file = JpegImageFile(BytesIO(b"".join(parts)))
    if file.size != (header.size.width, header.size.height):
        raise _undecodable(ImageFormat.JPEG)
    orientation = exif_orientation(exif) if exif else UPRIGHT
    if needed is not None:
        size = _upright(needed(_upright(header.size, orientation)), orientation)
        file.draft(file.mode, (size.width, size.height))
    file.load()
    return file, orientation


def _scans(data: memoryview, layout: _JpegLayout, limits: DecodeLimits) -> list[memoryview]:
    """All scans with their data, and the tables between them.

    Raises:
        IndexError, KeyError, ImageUndecodable: damaged.
        ImageTooLarge: too many segments, or the scans take too much work.
    """
    planes = {
        component: layout.unit * (sampling >> 4) * (sampling & 15)
        for component, sampling in zip(layout.components, layout.samplings, strict=True)
    }
    parts: list[memoryview] = []
    offset, scans, samples = layout.segments[-1][1], 0, 0
    for _ in range(MAX_PARTS):
        marker = data[offset + 1]
        if marker == EOI:
            parts.append(data[offset : offset + 2])
            return parts
        end = offset + 2 + (data[offset + 2] << 8 | data[offset + 3])
        following = _next_marker(data, end)
        if marker == SOS:
            parts.append(data[offset:following])
            scans += 1
            samples += sum(planes[data[at]] for at in range(offset + 5, offset + 5 + 2 * data[offset + 4], 2))
            cost = int(layout.cost + SCANNED_COST * samples)
            if cost > limits.max_decode_cost:
                raise _too_much_work(f"JPEG with {scans:,} scans or more", cost, limits)
        elif marker in DECODED:
            parts.append(data[offset:end])
        offset = following
    raise too_many_parts(ImageFormat.JPEG, "segments", MAX_PARTS)


def _next_marker(data: memoryview, start: int) -> int:
    """The offset of the next marker with a segment, or that ends the picture. Raises ImageUndecodable: none."""
    while start < len(data):
        found = NEXT_MARKER.search(data, start, start + SEARCHED_BYTES + 1)
        if found is not None:
            return found.start()
        start += SEARCHED_BYTES
    raise _undecodable(ImageFormat.JPEG)


_HEADERS: dict[ImageFormat, Callable[[bytes], Header]] = {
    ImageFormat.JPEG: _jpeg_header,
    ImageFormat.PNG: png.read_header,
    ImageFormat.WEBP: webp.read_header,
    ImageFormat.BMP: bmp.read_header,
    ImageFormat.GIF: gif.read_header,
}
_LOADERS: dict[ImageFormat, Callable[[bytes, Header], tuple[PIL.Image.Image | UInt8Array, int]]] = {
    ImageFormat.PNG: png.load,
    ImageFormat.WEBP: webp.load,
    ImageFormat.BMP: bmp.load,
    ImageFormat.GIF: gif.load,
}
