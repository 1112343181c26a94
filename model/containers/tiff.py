"""TIFF: the first page, of strips or tiles, also in a BigTIFF.

The directory is read here, and the decoder gets a new file of the page's pixels and of the tags that they need: no
metadata, further pages, or offsets that lead elsewhere. Nor does it get the orientation, which Pillow would apply.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
from PIL.TiffImagePlugin import TiffImageFile

from model.containers.header import (
    ACCEPTED,
    BLOCK_BYTE_COST,
    MAX_HEADER_PARTS,
    MAX_PARTS,
    UPRIGHT,
    Header,
    ImageFormat,
    check_size,
    header_of,
    too_many_parts,
)
from model.errors import UnsupportedFormat
from model.pixels import PIXEL_BYTES, STRIP_PIXELS
from model.types import UInt8Array

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
CANON_RAW = b"CR"
"""Behind the header of a camera's raw file (CR2)."""

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR = 256, 257, 258, 259, 262, 277, 284
STRIP_OFFSETS, ROWS_PER_STRIP, STRIP_BYTES = 273, 278, 279
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 322, 323, 324, 325
SUBFILE_TYPE, MAKE, ORIENTATION, SUB_DIRECTORIES, DNG_VERSION = 254, 271, 274, 330, 50706
EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, SUBSAMPLING = 338, 339, 347, 530
COLOUR_MAP = 320
PLACES = frozenset({STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES})
NEEDED = frozenset({
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, ROWS_PER_STRIP, TILE_WIDTH, TILE_HEIGHT),
    *(EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, SUBSAMPLING),
    *(266, 292, 293),  # the order of bits, and options of CCITT's codes
    *(317, COLOUR_MAP, 332),  # predictor, palette, inks
    *(529, 531, 532),  # of YCbCr: coefficients, positions, black and white
})  # fmt: skip
"""Tags that decoding needs, besides `PLACES`."""
SINGLE = NEEDED - {BITS, EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, SUBSAMPLING, COLOUR_MAP, 529, 532}
"""Tags of one value."""
READ = NEEDED | PLACES | {SUBFILE_TYPE, MAKE, ORIENTATION, SUB_DIRECTORIES, DNG_VERSION}

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
SHORT, LONG = 3, 4
BYTE_MAX = 255
"""Old writers' colour maps have values of 8 bits instead of 16. One with no larger value is of them, as for libtiff."""
MAX_VALUE_BYTES = 1 << 16
"""Of a tag, besides those of the strips or tiles. The largest palette has 1,536, JPEG's tables some hundreds."""
MAX_SAMPLES = 6

NONE, JPEG, CCITT, DEFLATE = 1, 7, frozenset({2, 3, 4}), frozenset({8, 32946})
COMPRESSIONS = frozenset({NONE, *CCITT, 5, JPEG, *DEFLATE, 32773})
"""None, CCITT's, LZW, JPEG, deflate under two numbers, and PackBits."""
OTHER_COMPRESSIONS = {
    6: "old-style JPEG",
    34661: "JBIG",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
RAW_COMPRESSIONS = frozenset({32767, 34713, 34892, 65535})
WHITE_IS_ZERO, BLACK_IS_ZERO, YCBCR = 0, 1, 6
PHOTOMETRICS = frozenset({0, 1, 2, 3, 5, YCBCR})
"""Grey in two ways, RGB, palette, CMYK, YCbCr."""
OTHER_PHOTOMETRICS = {4: "mask", 8: "Lab", 9: "Lab", 10: "Lab", 32844: "LogLuv", 32845: "LogLuv"}
RAW_PHOTOMETRICS = frozenset({32803, 34892})
SEPARATE = 2
"""Planes follow each other."""

PIXEL_COST, BYTE_COST, ENCODED_COST, PART_COST = 0.5, 0.8, 1.5, 5_000
"""Of a pixel, of a decoded byte, of an encoded one, of a strip or tile."""
CCITT_PIXEL_COST, JPEG_SAMPLE_COST, JPEG_BYTE_COST = 4, 0.6, 3
SOI, SOS, BASELINE = b"\xff\xd8", 0xDA, frozenset({0xC0, 0xC1})
MAX_JPEG_SEGMENTS = 64
"""Before the scan of a strip."""


# libtiff would write of each damaged picture to stderr. Pillow's wheels carry their own.
for _library in Path(PIL.__file__).parent.parent.glob("pillow.libs/libtiff*"):
    ctypes.CDLL(str(_library)).TIFFSetErrorHandler(None)


@dataclass(frozen=True, slots=True)
class _Tag:
    """A tag's type, and its values as they are stored."""

    kind: int
    content: bytes


@dataclass(frozen=True, slots=True)
class _Layout:
    """A page: its tags, the order of its bytes, and where its strips or tiles are in the file."""

    order: str
    tags: dict[int, _Tag]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    tiled: bool
    orientation: int
    bits: int
    """Of a pixel."""
    inverted: bool
    """White is at 0 in samples of 16 bits, which Pillow reads in one byte order only, and never inverts."""


def read_header(data: bytes) -> Header:
    """The header of a TIFF's first page.

    Raises:
        struct.error, LookupError, ValueError: damaged.
        UnsupportedFormat: a camera's raw file, a compression or samples that are not decoded.
        ImageTooLarge: too many tags, strips or tiles.
    """
    if data[8:10] == CANON_RAW:
        raise _raw()
    page = _Page(data)
    page.check_raw()
    width, height = page.number(WIDTH), page.number(HEIGHT)
    samples, compression = page.number(SAMPLES, 1), page.number(COMPRESSION, NONE)
    bits = page.check_samples(samples, compression)
    planes = samples if page.number(PLANAR, 1) == SEPARATE else 1
    tiled = TILE_OFFSETS in page.tags
    part_width, part_height = width, min(page.number(ROWS_PER_STRIP, height), height)
    if tiled:
        part_width, part_height = page.number(TILE_WIDTH), page.number(TILE_HEIGHT)
    if not (width and height and part_width and part_height):
        return header_of(ImageFormat.TIFF, 0, 0, 0)
    starts, sizes = page.parts(tiled, -(-width // part_width) * -(-height // part_height) * planes)
    row_bytes = -(-bits * width // (8 * planes))
    encoded_bytes = sum(sizes)
    part_bytes = part_height * max(-(-bits * part_width // (8 * planes)), PIXEL_BYTES * part_width)
    if compression == JPEG:
        cost = JPEG_SAMPLE_COST * samples * width * height + JPEG_BYTE_COST * encoded_bytes
    else:
        pixel_cost = CCITT_PIXEL_COST if compression in CCITT else PIXEL_COST
        cost = pixel_cost * width * height + BYTE_COST * row_bytes * planes * height + ENCODED_COST * encoded_bytes
    block_cost = (BLOCK_BYTE_COST - ENCODED_COST) * encoded_bytes if compression in DEFLATE else 0
    orientation = page.number(ORIENTATION, UPRIGHT)
    tags = {number: tag for number, tag in page.tags.items() if number in NEEDED}
    inverted = bits == 16 and samples == 1 and page.number(PHOTOMETRIC, 0) == WHITE_IS_ZERO
    colours = page.numbers(COLOUR_MAP)
    if colours and max(colours) <= BYTE_MAX:
        tags[COLOUR_MAP] = _Tag(SHORT, struct.pack(f"{page.order}{len(colours)}H", *(value << 8 for value in colours)))
    if inverted:
        tags[PHOTOMETRIC] = _longs(page.order, [BLACK_IS_ZERO])
    layout = _Layout(
        page.order,
        tags,
        starts,
        sizes,
        tiled,
        orientation if 1 <= orientation <= 8 else UPRIGHT,
        bits,
        inverted,
    )
    buffers = 0 if compression == NONE and not tiled else part_bytes
    return header_of(
        ImageFormat.TIFF,
        width,
        height,
        cost + PART_COST * len(sizes),
        worst_cost=cost + PART_COST * len(sizes) + block_cost,
        row_bytes=encoded_bytes + buffers,
        layout=layout,
    )


def load(data: bytes, header: Header) -> tuple[PIL.Image.Image | UInt8Array, int]:
    """The page as it is stored, and its orientation. 16-bit grey is uint8 (H, W, 3).

    Raises:
        UnsupportedFormat: samples that Pillow does not read, or JPEG strips that are not baseline.
        Exception: what Pillow raises for damaged files.
    """
    layout = header.layout
    assert isinstance(layout, _Layout)
    if any(start + size > len(data) for start, size in zip(layout.starts, layout.sizes, strict=True)):
        raise ValueError("a strip is truncated")
    compression = layout.tags.get(COMPRESSION)
    if compression is not None and _numbers(layout.order, compression) == (JPEG,):
        for start, size in zip(layout.starts, layout.sizes, strict=True):
            _check_baseline(data, start, start + size)
    try:
        file = TiffImageFile(BytesIO(_page_alone(data, layout)))
    except SyntaxError as error:
        raise _unsupported(f"these samples ({_described(layout)})") from error
    check_size(file, header)
    file.load()
    if file.mode in ("I;16", "I;16B"):
        return _high_bytes(file, layout), layout.orientation
    # Of this mode, grey that is multiplied by alpha, Pillow converts nothing else.
    return file.convert("LA") if file.mode == "La" else file, layout.orientation


class _Page:
    """The first directory of a file. Methods raise what `read_header` does."""

    def __init__(self, data: bytes) -> None:
        self.order = "<" if data[:2] == b"II" else ">"
        self.tags: dict[int, _Tag] = {}
        self._data = data
        big = data[2:4] in (b"+\0", b"\0+")
        if big:
            (offset,) = struct.unpack_from(f"{self.order}Q", data, 8)
            (count,) = struct.unpack_from(f"{self.order}Q", data, offset)
            offset += 8
        else:
            (offset,) = struct.unpack_from(f"{self.order}I", data, 4)
            (count,) = struct.unpack_from(f"{self.order}H", data, offset)
            offset += 2
        if count > MAX_HEADER_PARTS:
            raise too_many_parts(ImageFormat.TIFF, "tags", MAX_HEADER_PARTS)
        entry, inline = (f"{self.order}HHQ", 8) if big else (f"{self.order}HHI", 4)
        place_code = f"{self.order}{'Q' if big else 'I'}"
        for _ in range(count):
            number, kind, values = struct.unpack_from(entry, data, offset)
            offset += 4 + inline
            if number in READ and kind in TYPE_BYTES:
                size = TYPE_BYTES[kind] * values
                start = offset
                if size > inline:
                    (start,) = struct.unpack_from(place_code, data, offset)
                self._add(number, kind, values, start, size)
            offset += inline
        if offset > len(data):
            raise ValueError("the directory is truncated")

    def _add(self, number: int, kind: int, values: int, start: int, size: int) -> None:
        if number in PLACES:
            if values > MAX_PARTS:
                raise too_many_parts(ImageFormat.TIFF, "strips or tiles", MAX_PARTS)
        elif size > MAX_VALUE_BYTES:
            if number in NEEDED:
                raise ValueError("a tag is too long")
            return
        if start + size > len(self._data):
            raise ValueError("a tag is truncated")
        self.tags[number] = _Tag(kind, self._data[start : start + size])

    def numbers(self, tag: int) -> tuple[int, ...]:
        """A tag's integers; none if the file does not have it."""
        return _numbers(self.order, self.tags[tag]) if tag in self.tags else ()

    def number(self, tag: int, default: int | None = None) -> int:
        """A tag's first integer. Without a default the tag is required."""
        values = self.numbers(tag)
        if values:
            return values[0]
        if default is None:
            raise LookupError(f"the tag {tag} is missing")
        return default

    def check_raw(self) -> None:
        """Cameras' raw files are TIFFs whose first page is a preview."""
        if (
            DNG_VERSION in self.tags
            or self.number(COMPRESSION, NONE) in RAW_COMPRESSIONS
            or self.number(PHOTOMETRIC, 0) in RAW_PHOTOMETRICS
            or (MAKE in self.tags and SUB_DIRECTORIES in self.tags and self.number(SUBFILE_TYPE, 0) & 1)
        ):
            raise _raw()

    def check_samples(self, samples: int, compression: int) -> int:
        """The bits of a pixel, in all planes. Raises UnsupportedFormat."""
        photometric = self.number(PHOTOMETRIC, 0)
        kind = None
        if compression not in COMPRESSIONS:
            kind = f"{OTHER_COMPRESSIONS.get(compression, f'compression {compression}')} compression"
        elif photometric not in PHOTOMETRICS:
            kind = f"{OTHER_PHOTOMETRICS.get(photometric, f'photometric {photometric}')} samples"
        elif set(self.numbers(SAMPLE_FORMAT)) - {1, 4}:
            kind = "signed or floating-point samples"
        elif photometric == YCBCR and compression == NONE and (self.numbers(SUBSAMPLING) or (2, 2)) != (1, 1):
            kind = "uncompressed YCbCr samples"
        elif not 1 <= samples <= MAX_SAMPLES:
            kind = f"{samples} samples a pixel"
        bits = (self.numbers(BITS) or (1,))[: max(samples, 1)]
        if not min(bits):
            raise ValueError("samples have no bits")
        if kind is None and max(bits) > 16:
            kind = f"{max(bits)} bits a sample"
        if kind is not None:
            raise _unsupported(kind)
        return sum(bits) if len(bits) == samples else bits[0] * samples

    def parts(self, tiled: bool, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where the strips or tiles start, and how many bytes they have. Raises ValueError, ImageTooLarge."""
        if count > MAX_PARTS:
            raise too_many_parts(ImageFormat.TIFF, "strips or tiles", MAX_PARTS)
        starts = self.numbers(TILE_OFFSETS if tiled else STRIP_OFFSETS)
        sizes = self.numbers(TILE_BYTES if tiled else STRIP_BYTES)
        if not any(sizes):
            # Old writers leave them out, or write zeros.
            sizes = tuple(end - start for start, end in pairwise((*starts, len(self._data))))
        starts, sizes = starts[:count], sizes[:count]
        if len(starts) < count or len(sizes) < count or min(sizes) < 0:
            raise ValueError("strips are missing")
        if sum(sizes) > len(self._data):
            raise ValueError("strips share data, or are truncated")
        return starts, sizes


def _numbers(order: str, tag: _Tag) -> tuple[int, ...]:
    code = INTEGERS[tag.kind]
    return struct.unpack(f"{order}{len(tag.content) // TYPE_BYTES[tag.kind]}{code}", tag.content)


def _page_alone(data: bytes, layout: _Layout) -> bytes:
    """A classic TIFF of the page: its directory, the values of its tags, its strips or tiles."""
    order, view = layout.order, memoryview(data)
    sizes = layout.sizes
    tags = {number: _plain(order, number, tag) for number, tag in layout.tags.items() if tag.content}
    places, lengths = (TILE_OFFSETS, TILE_BYTES) if layout.tiled else (STRIP_OFFSETS, STRIP_BYTES)
    tags[lengths] = _longs(order, sizes)
    tags[places] = _longs(order, sizes)
    value_start = 8 + 2 + 12 * len(tags) + 4
    part_start = value_start + sum(len(tag.content) + 3 & ~3 for tag in tags.values() if len(tag.content) > 4)
    starts = [part_start]
    for size in sizes:
        starts.append(starts[-1] + size)
    tags[places] = _longs(order, starts[:-1])
    head = [b"II*\0" if order == "<" else b"MM\0*", struct.pack(f"{order}IH", 8, len(tags))]
    values: list[bytes] = []
    parts = (view[start : start + size] for start, size in zip(layout.starts, sizes, strict=True))
    for number, tag in sorted(tags.items()):
        count = len(tag.content) // TYPE_BYTES[tag.kind]
        head.append(struct.pack(f"{order}HHI", number, tag.kind, count))
        if len(tag.content) > 4:
            head.append(struct.pack(f"{order}I", value_start))
            values.append(tag.content.ljust(len(tag.content) + 3 & ~3, b"\0"))
            value_start += len(values[-1])
        else:
            head.append(tag.content.ljust(4, b"\0"))
    return b"".join((*head, bytes(4), *values, *parts))


def _plain(order: str, number: int, tag: _Tag) -> _Tag:
    """The tag in a type that a classic TIFF has, and with one value where more have no meaning: Pillow would warn."""
    if tag.kind not in INTEGERS or number == JPEG_TABLES:
        return tag
    values = _numbers(order, tag)
    return _longs(order, values[:1] if number in SINGLE else values)


def _longs(order: str, values: Sequence[int]) -> _Tag:
    return _Tag(LONG, struct.pack(f"{order}{len(values)}I", *values))


def _check_baseline(data: bytes, start: int, end: int) -> None:
    """Check that a strip is a baseline JPEG of one scan: others cost as often as they have scans.

    Raises:
        UnsupportedFormat: another one.
        ValueError, IndexError: damaged.
    """
    if not data.startswith(SOI, start):
        raise ValueError("a strip is no JPEG")
    offset, components = start + 2, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        if offset + 4 > end or data[offset] != 0xFF:
            raise ValueError("a strip is no JPEG")
        marker = data[offset + 1]
        if marker == SOS:
            if data[offset + 4] != components:
                break
            return
        if marker in BASELINE:
            components = data[offset + 9]
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8):
            break
        offset += 2 + (data[offset + 2] << 8 | data[offset + 3])
    raise _unsupported("JPEG strips in several scans")


def _high_bytes(image: PIL.Image.Image, layout: _Layout) -> UInt8Array:
    """Grey of 12 or 16 bits → uint8 (H, W, 3)."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(STRIP_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = (np.asarray(image.crop((0, top, image.width, bottom))) >> layout.bits - 8).astype(np.uint8)
        pixels[top:bottom] = (255 - strip if layout.inverted else strip)[:, :, None]
    return pixels


def _raw() -> UnsupportedFormat:
    return UnsupportedFormat(
        f"this is a camera's raw file (DNG, CR2, NEF, ARW or alike), which is not supported; send one of {ACCEPTED}"
    )


def _unsupported(kind: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"TIFF with {kind} is not supported; save it with 8 bits a sample and LZW or no compression, or send one of "
        f"{ACCEPTED}"
    )


def _described(layout: _Layout) -> str:
    names = {BITS: "bits", SAMPLES: "samples", PHOTOMETRIC: "photometric", EXTRA_SAMPLES: "extra samples"}
    return ", ".join(
        f"{name} {' '.join(map(str, _numbers(layout.order, layout.tags[tag])))}"
        for tag, name in names.items()
        if tag in layout.tags
    )
