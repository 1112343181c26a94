"""JPEG: one scan, or several. The segments are read here; the decoder gets only those that the pixels need."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg
from PIL.JpegImagePlugin import JpegImageFile

from model.containers.header import (
    DECODED_BYTES,
    MAX_HEADER_PARTS,
    MAX_PARTS,
    POINTER_BYTES,
    UPRIGHT,
    Header,
    ImageFormat,
    check_size,
    exif_orientation,
    too_many_parts,
    too_much_work,
    undecodable,
)
from model.errors import ImageUndecodable, UnsupportedFormat
from model.pixels import PIXEL_BYTES, cmyk_to_rgb, pillow_pixels, upright_size
from model.types import Reader, Size, UInt8Array

EOI, SOS, APP1 = 0xD9, 0xDA, 0xE1
TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
"""Markers of Huffman and arithmetic tables, quantisation tables, and the distance of restarts."""
FRAMES = frozenset(range(0xC0, 0xD0)) - TABLES - {0xC8}
PROGRESSIVE = frozenset({0xC2, 0xCA})
OTHER_FORMATS = {0xF7: "a JPEG-LS picture", 0xDE: "a hierarchical JPEG"}
"""Markers of formats that begin as a JPEG does."""
OTHER_PROCESSES = {
    0xCB: "lossless arithmetic",
    0xCF: "lossless hierarchical",
    0xC7: "lossless hierarchical",
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "hierarchical"),
}
"""Frames of coding processes that decoders of pictures lack."""
LOSSLESS = 0xC3
ARITHMETIC = frozenset({0xC9, 0xCA})
DECODED = FRAMES | TABLES | {SOS}
CMYK_COMPONENTS = 4
APPLICATIONS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
"""Application segments that define how colours are coded, and how they begin."""
BARE_MARKERS = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
"""Markers without a segment. Zero follows a byte 0xFF that is data."""
NEXT_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")
SEARCHED_BYTES = 1 << 18
"""At a time: a search holds the GIL, for some milliseconds at worst."""
SAMPLE_COST, SCANNED_COST = 0.6, 0.2
"""Of each sample, and of each that one of several scans passes over."""
ARITHMETIC_BYTE_COST, ARITHMETIC_CODE_COST = 24, 19
"""Of a byte, and at worst of each coefficient that a scan codes: foreseeable decisions have next to no bytes, and none
behind the end of the data, where the decoder goes on without a warning."""
USUAL_SCANS = 5
"""Times that the scans of a progressive JPEG pass over all its samples, as usual encoders write it: in ten scans, most
of them of one component."""

END = bytes([0xFF, EOI])
DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG file", "Inconsistent progression")
"""How libjpeg's warnings of lost pixels begin."""
UNUSUAL = (
    "Warning: unknown JFIF",
    "Unknown Adobe",
    "Invalid SOS parameters",
    "Unsupported color conversion request",
    "tjDecompressHeader3(): Could not determine subsampling level",
)
"""How its warnings of odd numbers in headers begin, on which no pixel depends, and how TurboJPEG refuses components of
resolutions that it has no name for, and lossless grey. The last warning is the one that is raised."""
PADDED = "extraneous bytes before marker 0xd9"
"""How its warning ends of bytes between the last code and the end."""

Needed = Callable[[Size], Size]
"""The upright size of a picture → the size that its caller resizes to."""


@dataclass(frozen=True, slots=True)
class _Layout:
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
    frame: int
    """The marker of the frame header: the coding process."""
    nbytes: int

    def cost(self, scanned: int) -> float:
        """That of a usual file whose scans pass over so many samples in all."""
        byte_cost = ARITHMETIC_BYTE_COST if self.frame in ARITHMETIC else 12 if self.frame in PROGRESSIVE else 3
        return SAMPLE_COST * self.samples + SCANNED_COST * scanned * self.several_scans + byte_cost * self.nbytes

    def worst_cost(self, scanned: int, coded: int) -> float:
        """That of any file whose scans pass over `scanned` samples, and code so many coefficients."""
        return self.cost(scanned) + ARITHMETIC_CODE_COST * coded * (self.frame in ARITHMETIC)


def read_header(data: bytes) -> Header:
    """The header of a JPEG.

    Raises:
        struct.error, LookupError, ValueError, ArithmeticError: truncated or damaged.
        ImageUndecodable, ImageTooLarge: no picture; too many segments.
    """
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
            raise undecodable(ImageFormat.JPEG)
        segments.append((marker, start, offset))
        if marker in FRAMES:
            if frame:
                raise ImageUndecodable("the JPEG has several frame headers; save it again")
            frame = marker
            precision, height, width, number = struct.unpack_from(">BHHB", data, start + 4)
            components, samplings = data[start + 10 : offset : 3], data[start + 11 : offset : 3]
        elif marker in OTHER_FORMATS:
            raise _not_read(OTHER_FORMATS[marker])
        elif marker == SOS:
            break
    else:
        raise too_many_parts(ImageFormat.JPEG, "segments before its first scan", MAX_HEADER_PARTS)
    if not frame:
        raise ImageUndecodable("the JPEG has no frame header; send the whole file")
    if frame in OTHER_PROCESSES:
        raise _not_read(f"a {OTHER_PROCESSES[frame]} JPEG")
    if precision != 8:
        raise _not_read(f"a JPEG with {precision} bits a sample")
    if not height and width:
        raise _not_read("a JPEG whose height follows its pixels (DNL)")
    if len(samplings) != number or not height or not width:
        raise ImageUndecodable("the JPEG has a frame header without pixels; send the whole file")
    across, down, blocks = max(samplings) >> 4, 0, 0
    for sampling in samplings:
        down = max(down, sampling & 15)
        blocks += (sampling >> 4) * (sampling & 15)
    unit = 64 * -(-width // (8 * across)) * -(-height // (8 * down))
    samples = unit * blocks
    several_scans = frame in PROGRESSIVE or data[segments[-1][1] + 4] < number
    layout = _Layout(segments, components, samplings, unit, samples, several_scans, frame, len(data))
    decode_bytes = DECODED_BYTES * height * width + POINTER_BYTES * height
    if several_scans:
        # Coefficients have two bytes each; the picture is beside them.
        decode_bytes = max(decode_bytes, 2 * samples + PIXEL_BYTES * height * width)
    scanned = (USUAL_SCANS if several_scans else 1) * samples
    cost = int(layout.cost(scanned))
    worst_cost = int(layout.worst_cost(scanned, samples)) if frame in ARITHMETIC else cost
    return Header(ImageFormat.JPEG, Size(height, width), decode_bytes, cost, worst_cost, layout)


def depends_on_reader(header: Header) -> bool:
    """Whether `load` gives other pixels to another reader: those of CMYK."""
    return isinstance(header.layout, _Layout) and len(header.layout.components) == CMYK_COMPONENTS


def load(
    data: bytes, header: Header, max_cost: int, needed: Needed | None, reader: Reader
) -> tuple[JpegImageFile | UInt8Array, int]:
    """The picture as it is stored, an array being RGB as `reader` reads it, and its EXIF orientation.

    It is decoded at a reduced scale where `needed` allows it. Its scans may cost `max_cost` pixels.

    Raises:
        ImageTooLarge: too many segments, or the scans take too much work.
        ImageUndecodable: the decoder warns of damage.
        Exception: what decoders raise for damaged files.
    """
    layout = header.layout
    assert isinstance(layout, _Layout)
    parts: list[bytes | memoryview] = [b"\xff\xd8"]
    view = memoryview(data)
    exif = b""
    for marker, start, end in layout.segments:
        if marker in DECODED or (marker in APPLICATIONS and data.startswith(APPLICATIONS[marker], start + 4)):
            parts.append(view[start:end])
        elif marker == APP1 and data.startswith(b"Exif\0\0", start + 4):
            # A long block continues in further segments.
            exif += data[start + 10 : end]
    cost = header.worst_cost  # with one scan
    if layout.several_scans:
        parts[-1:], end, cost = _scans(view, layout, max_cost)
    elif cost > max_cost:
        raise too_much_work("JPEG", cost, max_cost)
    else:
        parts.append(view[end:])
    # Some cameras leave out the end, which makes a whole picture no worse. Where pixels are missing the decoder warns.
    parts.append(END)
    orientation = exif_orientation(exif) if exif else UPRIGHT
    size, scale = header.size, 1
    if needed is not None and layout.frame != LOSSLESS:
        target = upright_size(needed(upright_size(size, orientation)), orientation)
        room = min(size.height // target.height, size.width // target.width)
        scale = next(scale for scale in (8, 4, 2, 1) if scale <= max(room, 1))
        size = Size(-(-size.height // scale), -(-size.width // scale))
    encoded = b"".join(parts)
    colours = "CMYK" if len(layout.components) == CMYK_COMPONENTS else "RGB"
    # Of the scales it takes the smallest that gives this size.
    least = (size.height, size.width) if scale > 1 else (0, 0)
    try:
        pixels: UInt8Array = simplejpeg.decode_jpeg(encoded, colours, False, False, *least)
    except ValueError as error:
        reason = str(error)
        if reason.startswith(DAMAGE):
            trimmed = _without_padding(data, layout, parts, end) if reason.endswith(PADDED) else data
            if len(trimmed) < len(data):
                return load(trimmed, header, max_cost - cost, needed, reader)
            raise ImageUndecodable(
                f"the JPEG is damaged ({reason.rpartition(': ')[2]}); send the original file, or save it again"
            ) from error
        if not reason.startswith(UNUSUAL):
            raise
        return _load_unusual(encoded, header, scale, reader), orientation
    if pixels.shape[:2] != (size.height, size.width):
        raise undecodable(ImageFormat.JPEG)
    return cmyk_to_rgb(pixels, reader) if colours == "CMYK" else pixels, orientation


def _without_padding(data: bytes, layout: _Layout, parts: list[bytes | memoryview], end: int) -> bytes:
    """The file without the zeros between its last code and its end, or up to the end of the file, and without what
    follows them. Some cameras and encoders write them. If codes are missing before them, the decoder warns of that
    instead. Of arithmetic codes and of whole scans it does not: there zeros count as written. `parts` are those that
    the decoder got, and `end` is where the first scan starts, or where the last of several ends.
    """
    if layout.frame in ARITHMETIC:
        return data
    if layout.several_scans and not _has_all_scans(parts, layout):
        return data
    stop = end if layout.several_scans else _next_marker(memoryview(data), end)
    filled = data[:stop].rstrip(b"\xff")
    kept = filled.rstrip(b"\0")
    if len(kept) == len(filled):
        return data
    # After a byte 0xFF the first zero is a part of the code.
    return kept + (b"\0" if kept.endswith(b"\xff") else b"") + END


def _has_all_scans(parts: list[bytes | memoryview], layout: _Layout) -> bool:
    """Whether the scans have all coefficients of all components, to their lowest bit."""
    missing = dict.fromkeys(layout.components, (1 << 64) - 1)
    for part in parts:
        if part[:2] == bytes([0xFF, SOS]):
            components = 5 + 2 * part[4]
            first, last, bits = part[components : components + 3]
            if not bits & 15:
                for at in range(5, components, 2):
                    missing[part[at]] &= ~((2 << last) - (1 << first))
    return not any(missing.values())


def _load_unusual(encoded: bytes, header: Header, scale: int, reader: Reader) -> JpegImageFile | UInt8Array:
    """Pillow decodes what TurboJPEG refuses without a need, and does not report warnings."""
    file = JpegImageFile(BytesIO(encoded))
    check_size(file, header)
    file.draft(file.mode, (file.width // scale, file.height // scale))
    file.load()
    if file.mode != "CMYK":
        return file
    pixels = pillow_pixels(file)
    np.invert(pixels, out=pixels)
    return cmyk_to_rgb(pixels, reader)


def _not_read(kind: str) -> UnsupportedFormat:
    return UnsupportedFormat(
        f"this is {kind}, which is not supported; save it as a baseline or progressive JPEG of 8 bits"
    )


def _scans(data: memoryview, layout: _Layout, max_cost: int) -> tuple[list[memoryview], int, int]:
    """All scans with their data, and the tables between them; where the last one ends; and their cost.

    Raises:
        IndexError, KeyError: damaged.
        ImageTooLarge: too many segments, or the scans take too much work.
    """
    planes = {
        component: layout.unit * (sampling >> 4) * (sampling & 15)
        for component, sampling in zip(layout.components, layout.samplings, strict=True)
    }
    parts: list[memoryview] = []
    offset, scans, samples, coded, cost = layout.segments[-1][1], 0, 0, 0, 0
    for _ in range(MAX_PARTS):
        marker = data[offset + 1]
        if marker == EOI:
            parts.append(data[offset : offset + 2])
            return parts, offset, cost
        end = offset + 2 + (data[offset + 2] << 8 | data[offset + 3])
        following = _next_marker(data, end)
        # What follows a segment and is none is a sign of damage, which the decoder is to see.
        parts.append(data[offset if marker in DECODED else end : following])
        if marker == SOS:
            scans += 1
            components = offset + 5 + 2 * data[offset + 4]
            passed = sum(planes[data[at]] for at in range(offset + 5, components, 2))
            first, last = data[components : components + 2] if layout.frame in PROGRESSIVE else (0, 63)
            samples += passed
            coded += passed * max(last + 1 - first, 0) // 64
            cost = int(layout.worst_cost(samples, coded))
            if cost > max_cost:
                raise too_much_work(f"JPEG with {scans:,} scans or more", cost, max_cost)
        offset = following
    raise too_many_parts(ImageFormat.JPEG, "segments", MAX_PARTS)


def _next_marker(data: memoryview, start: int) -> int:
    """The offset of the next marker with a segment, or that ends the picture; that of the data's end if it has none."""
    while start < len(data):
        found = NEXT_MARKER.search(data, start, start + SEARCHED_BYTES + 1)
        if found is not None:
            return found.start()
        start += SEARCHED_BYTES
    return len(data)
