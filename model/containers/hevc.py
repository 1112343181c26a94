"""HEVC (H.265): the sizes that a picture's parameter sets declare, and the picture's slices.

A decoder takes sizes from here and not from the container, and decodes whatever else it is given: further pictures,
other parameter sets. So both are read before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.containers.bitstream import BitReader, Coding

NAL_HEADER_BYTES = 2
FIRST_INTRA, LAST_INTRA = 16, 23
"""Types of NAL units with slices of a picture that needs no other one."""
LAST_SLICE = 31
"""The largest type of a NAL unit with a slice; the others hold parameters and metadata."""
SEQUENCE_PARAMETERS = 33
MAX_PARAMETER_SETS = 16
HEADER_BYTES = 256
"""Of a sequence parameter set, from which its beginning is read."""
SAMPLES = (1.0, 1.5, 2.0, 3.0)
"""Of a pixel, by the number of the chroma format."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the box `hvcC` holds: the bytes that a NAL unit's length has, and what its parameter sets declare."""

    length_bytes: int
    codings: tuple[Coding, ...]


def read_configuration(box: bytes) -> Configuration:
    """The content of a box `hvcC`. Raises IndexError, ValueError: damaged."""
    codings: list[Coding] = []
    offset = 23
    for _ in range(box[22]):
        kind, number = box[offset] & 0x3F, int.from_bytes(box[offset + 1 : offset + 3], "big")
        offset += 3
        if number > MAX_PARAMETER_SETS:
            raise ValueError("too many parameter sets")
        for _ in range(number):
            end = offset + 2 + int.from_bytes(box[offset : offset + 2], "big")
            if kind == SEQUENCE_PARAMETERS:
                coding, form = _coding(box[offset + 2 : end][:HEADER_BYTES])
                # pi_heif sizes its memory by what the box declares, and fills it by what the parameter set does.
                if form != (box[16] & 3, box[17] & 7, box[18] & 7):
                    raise ValueError("the configuration contradicts its parameter set")
                codings.append(coding)
            offset = end
    if not codings or offset > len(box):
        raise ValueError("no sequence parameters")
    return Configuration((box[21] & 3) + 1, tuple(codings))


def picture_slices(data: bytes | memoryview, length_bytes: int, limit: int) -> tuple[list[tuple[int, int]], int]:
    """The NAL units that hold the picture's slices, as (start, end) with the length before each; and the number of all
    units, at most `limit`.

    Raises:
        IndexError: truncated.
        ValueError: not one whole picture, or more units.
    """
    slices: list[tuple[int, int]] = []
    offset = pictures = units = 0
    while offset < len(data) and units < limit:
        start = offset + length_bytes
        end = start + int.from_bytes(data[offset:start], "big")
        if end > len(data) or end - start <= NAL_HEADER_BYTES:
            raise IndexError("a NAL unit is truncated")
        kind, layer = data[start] >> 1, (data[start] & 1) << 5 | data[start + 1] >> 3
        if kind <= LAST_SLICE and not layer:
            if not FIRST_INTRA <= kind <= LAST_INTRA:
                raise ValueError("the picture needs another one")
            pictures += data[start + NAL_HEADER_BYTES] >> 7
            slices.append((offset, end))
        offset = end
        units += 1
    if pictures != 1 or offset < len(data):
        raise ValueError("not one picture, or too many units")
    return slices, units


def _coding(unit: bytes) -> tuple[Coding, tuple[int, int, int]]:
    """What a sequence parameter set declares (H.265, 7.3.2.2): also the number of its chroma format, and the bits of
    luma and chroma beyond 8."""
    # Bytes that keep start codes from appearing are not part of the numbers.
    bits = BitReader(unit[NAL_HEADER_BYTES:].replace(b"\0\0\3", b"\0\0"))
    bits.read(4)
    sub_layers = bits.read(3)
    bits.read(1 + 88 + 8)  # the general profile and level
    present = [bits.read(2) for _ in range(sub_layers)]
    if sub_layers:
        bits.read(2 * (8 - sub_layers))
    for flags in present:
        bits.read(88 * (flags >> 1) + 8 * (flags & 1))
    bits.read_exp_golomb()
    chroma = bits.read_exp_golomb()
    if chroma == 3:
        bits.read(1)
    width, height = bits.read_exp_golomb(), bits.read_exp_golomb()
    if bits.read(1):
        for _ in range(4):
            bits.read_exp_golomb()
    luma, colour = bits.read_exp_golomb(), bits.read_exp_golomb()
    return Coding(width, height, SAMPLES[chroma], 2 if luma or colour else 1), (chroma, luma, colour)
