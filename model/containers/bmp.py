"""BMP: uncompressed pixels and run lengths. Pillow decodes palettes and 24 bits; run lengths, and pixels of 16 and
32 bits by their masks, are read here.

Of masks, Pillow knows a few, and OpenCV fewer. Run lengths Pillow decodes pixel by pixel in Python: seconds of the
interpreter for a file of 100 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL.BmpImagePlugin import BmpImageFile

from model.containers.header import (
    ACCEPTED,
    UPRIGHT,
    Header,
    ImageFormat,
    check_size,
    header_of,
    undecodable,
)
from model.errors import UnsupportedFormat
from model.pixels import boxes, rgba_on_white
from model.resize import COMPILED
from model.types import Reader, UInt8Array

if COMPILED:
    from model import _resample

CORE_HEADER, INFO_HEADER, OS2_HEADER = 12, 40, 64
"""Bytes of the headers: the oldest, with sides of 16 bits; the usual one; OS/2's, whose compressions differ."""
RGB_MASKS_HEADER, ALPHA_MASK_HEADER = 52, 56
"""From these sizes on, a header includes the masks of red, green and blue, and that of alpha."""
UNCOMPRESSED, BIT_FIELDS, ALPHA_BIT_FIELDS = 0, 3, 6
RUN_LENGTHS = {1: 8, 2: 4}
"""The bits of a pixel in both kinds of run lengths."""
END_OF_PICTURE, DELTA = 1, 2
"""What follows a run of no pixels; 0 ends the row, and larger numbers of pixels follow one by one."""
NIBBLES = [bytes((value >> 4, value & 15)) for value in range(256)]
RUN_BYTE_COST = 4 if COMPILED else 500
"""Of an encoded byte. Without the compiled code a file may take the interpreter for some tenths of a second."""
COMPRESSED = {4: "JPEG-compressed", 5: "PNG-compressed"}
DEFAULT_MASKS = {16: (0x7C00, 0x03E0, 0x001F), 32: (0xFF0000, 0xFF00, 0xFF)}
"""Of red, green and blue, by the bits of a pixel."""
OPENCV_SHIFTED = frozenset({(0x7C00, 0x03E0, 0x001F), (0xF800, 0x07E0, 0x001F)})
"""Masks whose fields OpenCV shifts to the left; the lowest bits are 0, so that white is (248, 248, 248)."""
MASKED_COST, ALPHA_COST = 3, 3
"""Of a pixel that is read by masks, and of its alpha."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where pixels of 16 or 32 bits are, and their masks: red, green and blue, and alpha, 0 if there is none."""

    offset: int
    bits: int
    top_down: bool
    masks: tuple[int, int, int]
    alpha: int


@dataclass(frozen=True, slots=True)
class _RunLengths:
    """Pixels of a palette in run lengths: where they are, the bits of one, and the palette's start and colours."""

    offset: int
    bits: int
    top_down: bool
    palette: int
    colours: int


def read_header(data: bytes) -> Header:
    """The header of a BMP.

    Raises:
        struct.error: truncated.
        ImageUndecodable: no pixels.
        UnsupportedFormat: another compression than run lengths.
    """
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == CORE_HEADER:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = UNCOMPRESSED
    else:
        width, height, _, bits, compression = struct.unpack_from("<IiHHI", data, 18)
    run_lengths = RUN_LENGTHS.get(compression) == bits and header_bytes >= INFO_HEADER and header_bytes != OS2_HEADER
    if not (compression == UNCOMPRESSED or run_lengths) and (
        compression not in (BIT_FIELDS, ALPHA_BIT_FIELDS) or header_bytes == OS2_HEADER or bits not in DEFAULT_MASKS
    ):
        kind = "compressed" if header_bytes == OS2_HEADER else COMPRESSED.get(compression, "compressed")
        raise UnsupportedFormat(f"{kind} BMP is not supported; save it uncompressed, or send one of {ACCEPTED}")
    layout: object = None
    cost = 1
    if run_lengths:
        offset, colours = struct.unpack_from("<I", data, 10)[0], struct.unpack_from("<I", data, 46)[0]
        layout = _RunLengths(offset, bits, height < 0, 14 + header_bytes, min(colours or 256, 1 << bits))
    elif bits in DEFAULT_MASKS:
        layout = masked = _masked(data, header_bytes, bits, compression, height < 0)
        cost = MASKED_COST + ALPHA_COST * bool(masked.alpha)
    # A negative height: the rows are stored from the top.
    whole_cost = cost * width * abs(height) + RUN_BYTE_COST * len(data) * run_lengths
    return header_of(ImageFormat.BMP, width, abs(height), whole_cost, layout=layout)


def depends_on_reader(header: Header) -> bool:
    """Whether `load` gives other pixels to another reader."""
    return isinstance(header.layout, _Layout) and header.layout.masks in OPENCV_SHIFTED


def load(data: bytes, header: Header, reader: Reader) -> tuple[BmpImageFile | UInt8Array, int]:
    """The picture as `reader` reads it, an array being RGB, and its orientation: a BMP has none.

    Raises:
        ImageUndecodable: truncated, or damaged run lengths.
        Exception: what Pillow raises for damaged files.
    """
    if isinstance(header.layout, _Layout):
        return _load_masked(data, header, header.layout, reader), UPRIGHT
    if isinstance(header.layout, _RunLengths):
        return _load_run_lengths(data, header, header.layout), UPRIGHT
    file = BmpImageFile(BytesIO(data))
    check_size(file, header)
    file.load()
    return file, UPRIGHT


def _load_run_lengths(data: bytes, header: Header, layout: _RunLengths) -> UInt8Array:
    """uint8 (H, W, 3), RGB. Pixels that the run lengths skip have the first colour of the palette."""
    height, width = header.size.height, header.size.width
    colours = np.frombuffer(data, np.uint8, 4 * layout.colours, layout.palette).reshape(-1, 4)
    palette = np.zeros((1 << 8, 3), np.uint8)
    palette[: len(colours)] = colours[:, 2::-1]
    stored = bytearray(width * height)
    try:
        if COMPILED:
            _resample.run_lengths(memoryview(data)[layout.offset :], layout.bits == 8, width, stored)
        else:
            run_lengths(data[layout.offset :], layout.bits == 8, width, stored)
    except (IndexError, ValueError) as error:
        raise undecodable(ImageFormat.BMP) from error
    indices = np.frombuffer(stored, np.uint8).reshape(height, width)
    return np.take(palette, indices if layout.top_down else indices[::-1], axis=0)


def run_lengths(data: bytes, wide: bool, width: int, indices: bytearray) -> None:
    """As `_resample.run_lengths`, without a compiler. Raises IndexError."""
    place, at, row_complete = 0, 0, False
    while place < len(indices):
        count, value = data[at], data[at + 1]
        at += 2
        number = count or value
        if count or value > DELTA:
            if place % width + number > width:
                raise IndexError("a run exceeds its row")
            if count:
                run = bytes((value,)) * count if wide else (NIBBLES[value] * (count + 1 >> 1))[:count]
            else:
                stored = number if wide else number + 1 >> 1
                run = data[at : at + stored]
                if len(run) < stored:
                    raise IndexError("truncated")
                at += stored + (stored & 1)
                run = run if wide else b"".join(map(NIBBLES.__getitem__, run))[:number]
            indices[place : place + number] = run
            place += number
            row_complete = place % width == 0
            continue
        if value == END_OF_PICTURE:
            break
        if value == DELTA:
            place += data[at] + data[at + 1] * width
            at += 2
        elif not row_complete:  # else the row has ended with its last pixel
            place += width - place % width
        row_complete = False


def _masked(data: bytes, header_bytes: int, bits: int, compression: int, top_down: bool) -> _Layout:
    (offset,) = struct.unpack_from("<I", data, 10)
    red, green, blue = DEFAULT_MASKS[bits]
    alpha = 0
    if compression != UNCOMPRESSED:
        # They follow the oldest header that has compressions, and lie in the later ones at the same place.
        red, green, blue = struct.unpack_from("<III", data, 14 + INFO_HEADER)
        if header_bytes >= ALPHA_MASK_HEADER or compression == ALPHA_BIT_FIELDS:
            (alpha,) = struct.unpack_from("<I", data, 14 + RGB_MASKS_HEADER)
    for mask in (red, green, blue, alpha):
        ones = mask >> _shift(mask)
        if mask >> bits or ones & ones + 1:
            raise UnsupportedFormat(f"a BMP with the bit mask {mask:#x} is not supported; save it with 24 bits a pixel")
    return _Layout(offset, bits, top_down, (red, green, blue), alpha)


def _load_masked(data: bytes, header: Header, layout: _Layout, reader: Reader) -> UInt8Array:
    """uint8 (H, W, 3), RGB. A file whose alpha is 0 everywhere has none: writers leave the byte empty."""
    height, width = header.size.height, header.size.width
    row_bytes = (width * layout.bits // 8 + 3) // 4 * 4
    used_bytes, end = width * layout.bits // 8, layout.offset + row_bytes * height
    if end - row_bytes + used_bytes > len(data):
        raise undecodable(ImageFormat.BMP)
    if end > len(data):
        # Some writers leave out the padding of the last row.
        data = data.ljust(end, b"\0")
    stored = np.frombuffer(data, np.uint8, row_bytes * height, layout.offset).reshape(height, row_bytes)
    values = stored[:, :used_bytes].view("<u2" if layout.bits == 16 else "<u4")
    if not layout.top_down:
        values = values[::-1]
    shifted = reader is Reader.OPENCV and layout.masks in OPENCV_SHIFTED
    strips = [np.s_[top:bottom, left:right] for left, top, right, bottom in boxes(width, height)]
    transparent = bool(layout.alpha) and any(bool((values[place] & layout.alpha).any()) for place in strips)
    pixels = np.empty((height, width, 3), np.uint8)
    for place in strips:
        strip, part = values[place], pixels[place]
        for channel, mask in enumerate(layout.masks):
            part[:, :, channel] = _field(strip, mask, shifted)
        if transparent:
            part[:] = rgba_on_white(np.dstack((part, _field(strip, layout.alpha, shifted=False))))[:, :, :3]
    return pixels


def _field(values: npt.NDArray[np.uint16] | npt.NDArray[np.uint32], mask: int, shifted: bool) -> UInt8Array:
    """The masked bits of each value, as 0 to 255: scaled as Pillow does, or `shifted`. Of more than 8 the highest."""
    shift = _shift(mask)
    field, bits = values >> shift & mask >> shift, (mask >> shift).bit_length()
    if bits >= 8:
        return (field >> bits - 8).astype(np.uint8)
    if shifted:
        return (field << 8 - bits).astype(np.uint8)
    levels: UInt8Array = (np.arange(1 << bits) * 255 // max((1 << bits) - 1, 1)).astype(np.uint8)
    return np.take(levels, field)


def _shift(mask: int) -> int:
    """The lowest bit of a mask; 0 if it has none."""
    return max((mask & -mask).bit_length() - 1, 0)
