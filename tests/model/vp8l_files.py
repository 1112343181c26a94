"""Lossless WebP streams whose blocks have a group of Huffman codes each, which libwebp's encoder does not write."""

from __future__ import annotations

BLOCK_SIDE = 4
"""Of a block, in pixels."""
SIGNATURE = 0x2F
ONE_SYMBOL = (1, 1), (0, 3)
"""A code of the symbol 0 alone: its codes have no bits."""


class _Bits:
    """Collects numbers as bits, the lowest first."""

    def __init__(self) -> None:
        self._value = self._count = 0

    def write(self, *numbers: tuple[int, int]) -> None:
        """Pairs of a number and its bits."""
        for number, count in numbers:
            self._value |= number << self._count
            self._count += count

    def bytes(self) -> bytes:
        return self._value.to_bytes(-(-self._count // 8), "little")


def stream_of_groups(across: int, down: int, *, cache_bits: int = 0, has_header: bool = True) -> bytes:
    """A stream of `across` x `down` blocks of 4 x 4 pixels. All pixels are 0. Alpha has no header."""
    bits = _Bits()
    if has_header:
        sides = [(BLOCK_SIDE * blocks - 1, 14) for blocks in (across, down)]
        bits.write((SIGNATURE, 8), *sides, (0, 1), (0, 3))
    bits.write((0, 1))  # no transform
    bits.write(*([(1, 1), (cache_bits, 4)] if cache_bits else [(0, 1)]))
    bits.write((1, 1), (0, 3))  # an entropy image, of blocks of 4 x 4 pixels; it has no cache of its own
    bits.write((0, 1))
    _write_byte_code(bits, 280)
    _write_byte_code(bits, 256)
    bits.write(*ONE_SYMBOL * 3)
    for group in range(across * down):
        bits.write((_reversed(group & 255), 8), (_reversed(group >> 8), 8))
    bits.write(*ONE_SYMBOL * 5 * across * down)
    return bits.bytes()


def _write_byte_code(bits: _Bits, symbols: int) -> None:
    """A code of 8 bits for each of the first 256 symbols, and none for the others."""
    # Lengths are coded themselves: 8 and a run of zeros (18) have one bit each, in the format's order of lengths.
    order = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8)
    bits.write((0, 1), (len(order) - 4, 4), *[(int(length in (8, 18)), 3) for length in order], (0, 1))
    bits.write(*[(0, 1)] * 256)
    if symbols > 256:
        bits.write((1, 1), (symbols - 256 - 11, 7))


def _reversed(number: int) -> int:
    """The first bit of a code is the lowest one."""
    return int(f"{number:08b}"[::-1], 2)
