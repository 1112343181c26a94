"""AV1: the size that a picture's sequence header declares, and that the data holds one frame."""

from __future__ import annotations

from collections.abc import Iterator

from model.containers.bitstream import BitReader, Coding

SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6
"""Types of OBUs, the units of a stream."""
HEADER_BYTES = 256
"""Of a sequence header, from which its beginning is read."""
FIRST_UNITS = 16
"""Among which the sequence header is."""
BT709, SRGB, IDENTITY = 1, 13, 0
"""Primaries, transfer and matrix of RGB that is coded as it is, without chroma subsampling."""
SELECTED_BY_FRAME = 2


def read_coding(data: bytes) -> Coding:
    """What the first sequence header declares. Raises IndexError, ValueError: damaged, or none."""
    for kind, start, end in _units(data, FIRST_UNITS):
        if kind == SEQUENCE_HEADER:
            return _coding(data[start : min(end, start + HEADER_BYTES)])
    raise ValueError("no sequence header")


def check_configuration(box: bytes, coding: Coding) -> None:
    """Check that a box `av1C` declares the samples of `coding`. Raises IndexError, ValueError: it does not."""
    high_depth, monochrome, across, down = (box[2] >> shift & 1 for shift in (6, 4, 3, 2))
    samples = 1.0 if monochrome else 1 + 2 / ((1 + across) * (1 + down))
    if (samples, 1 + high_depth) != (coding.samples, coding.sample_bytes):
        raise ValueError("the configuration contradicts its sequence header")


def check_picture(data: bytes, coding: Coding, limit: int) -> int:
    """Check that the data holds one frame, and that its sequence headers declare `coding`. The number of its units, at
    most `limit`.

    Raises:
        IndexError: truncated.
        ValueError: anything else.
    """
    frames = units = 0
    for kind, start, end in _units(data, limit):
        if end > len(data):
            raise IndexError("a unit is truncated")
        if kind == SEQUENCE_HEADER and _coding(data[start : min(end, start + HEADER_BYTES)]) != coding:
            raise ValueError("several sizes")
        frames += kind in (FRAME_HEADER, FRAME)
        units += 1
    if frames != 1:
        raise ValueError("not one frame")
    return units


def _units(data: bytes, limit: int) -> Iterator[tuple[int, int, int]]:
    """The type of each OBU, and where its content starts and ends."""
    offset = 0
    for _ in range(limit):
        if offset >= len(data):
            return
        head = data[offset]
        offset += 2 if head & 4 else 1
        length = len(data) - offset
        if head & 2:
            length = 0
            for shift in range(0, 56, 7):
                byte = data[offset]
                offset += 1
                length |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
        yield head >> 3 & 15, offset, offset + length
        offset += length
    raise ValueError("too many units")


def _coding(content: bytes) -> Coding:
    """What a sequence header declares (AV1, 5.5)."""
    bits = BitReader(content)
    profile, _, reduced = bits.read(3), bits.read(1), bits.read(1)
    if reduced:
        bits.read(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    if not reduced and bits.read(1):
        bits.read(7)
    bits.read(3)
    if not reduced:
        bits.read(4)
        if bits.read(1):
            bits.read(2)
            order_hint = True
        else:
            order_hint = False
        screen_content = SELECTED_BY_FRAME if bits.read(1) else bits.read(1)
        if screen_content and not bits.read(1):
            bits.read(1)
        if order_hint:
            bits.read(3)
    bits.read(3)
    high_depth = bits.read(1)
    twelve = profile == 2 and high_depth and bits.read(1)
    monochrome = profile != 1 and bits.read(1)
    colour = tuple(bits.read(8) for _ in range(3)) if bits.read(1) else None
    if monochrome:
        samples = 1.0
    elif colour == (BT709, SRGB, IDENTITY) or profile == 1:
        samples = 3.0
    elif profile == 0:
        samples = 1.5
    else:
        bits.read(1)
        samples = (1.5 if bits.read(1) else 2.0) if twelve and bits.read(1) else 3.0 if twelve else 2.0
    return Coding(width, height, samples, 2 if high_depth else 1)


def _skip_operating_points(bits: BitReader) -> None:
    delay_bits = 0
    if bits.read(1):
        bits.read(64)
        if bits.read(1):
            bits.read_exp_golomb()
        if bits.read(1):
            delay_bits = bits.read(5) + 1
            bits.read(42)
    initial_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if initial_delay and bits.read(1):
            bits.read(4)
