"""Lossless WebP (VP8L): the memory that a decoder takes for Huffman codes.

A picture may have 65,536 groups of codes, each of three bytes in the file and of thousands in the decoder's tables:
more memory than its pixels take. Which group the pixels of a block use is stored as an image of its own, the entropy
image, behind those of the transforms. So these images are read here, before the decoder sees the file.
Reference: RFC 9649, sections 3 to 6.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from model.errors import ImageTooLarge

MAX_TABLE_BYTES = 36_000_000
"""Of a picture. libwebp's encoder makes at most 2,600 groups, which take less."""
MAX_SCANNED = 1 << 18
"""Pixels of the transforms' images and of the entropy image, which are read one by one. For blocks of 32 x 32 pixels,
which libwebp's encoder usually makes, the largest picture has half as many."""
BLOCK_SIDE = 4
"""The smallest side of the blocks that a group is chosen for."""

PREDICTOR, CROSS_COLOUR, SUBTRACT_GREEN, COLOUR_INDEXING = range(4)
LENGTHS_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
LITERALS, LENGTH_CODES, DISTANCE_CODES = 256, 24, 40
MAX_CACHE_BITS = 11
CODE_BITS = 15
"""Of a code at most."""
REFILL_BYTES, REFILL_BITS = 32, 64
"""So many bytes are added to the bits that wait to be read, where there are fewer bits than that."""
HEADER_BITS = 40
"""Of a whole stream: its signature, sides and version."""


def table_limit(width: int, height: int) -> int:
    """The bytes of tables that a picture of this size, in pixels, may have at most, and that `check_tables` accepts."""
    groups = -(-width // BLOCK_SIDE) * -(-height // BLOCK_SIDE)
    return min(_table_bytes(groups, MAX_CACHE_BITS), MAX_TABLE_BYTES)


def check_tables(data: memoryview, width: int, height: int, *, has_header: bool) -> None:
    """Check the tables of a VP8L stream of `width` x `height` pixels. Alpha has no header.

    Raises:
        struct.error: damaged.
        ImageTooLarge: too many groups of codes, or too many pixels in the images that precede them.
    """
    if table_limit(width, height) < MAX_TABLE_BYTES:
        return
    bits = _Bits(data)
    if has_header:
        bits.read(HEADER_BITS)
    transforms: set[int] = set()
    while bits.read(1):
        kind = bits.read(2)
        if kind in transforms:
            raise struct.error("a transform is repeated")
        transforms.add(kind)
        if kind in (PREDICTOR, CROSS_COLOUR):
            bits.skip_image(*_blocks(width, height, bits.read(3) + 2))
        elif kind == COLOUR_INDEXING:
            colours = bits.read(8) + 1
            bits.skip_image(colours, 1)
            # Several indices of few bits are one pixel.
            width, _ = _blocks(width, 1, 3 if colours <= 2 else 2 if colours <= 4 else 1 if colours <= 16 else 0)
    cache_bits = bits.read(4) if bits.read(1) else 0
    if bits.read(1):
        groups = len(bits.skip_image(*_blocks(width, height, bits.read(3) + 2)))
        if _table_bytes(groups, cache_bits) > MAX_TABLE_BYTES:
            raise ImageTooLarge(
                f"the tables of the lossless WebP's {groups:,} groups of Huffman codes take more than "
                f"{MAX_TABLE_BYTES:,} bytes of memory, the limit; save it again"
            )


def _table_bytes(groups: int, cache_bits: int) -> int:
    """Of libwebp: for each group five tables of entries of four bytes, and a record of some hundreds."""
    return groups * (4 * (2_956 + (1 << cache_bits)) + 600)


def _blocks(width: int, height: int, side_bits: int) -> tuple[int, int]:
    """The number of blocks across and down; their sides have 2 ** `side_bits` pixels."""
    return -(-width >> side_bits), -(-height >> side_bits)


class _Bits:
    """Bits of a stream, the lowest of each byte first."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0
        self._value = self._count = 0
        self._scanned = 0

    def read(self, count: int) -> int:
        """A number of at most `REFILL_BITS` bits. Raises struct.error at the data's end."""
        if self._count < count:
            self._refill()
        number = self._value & (1 << count) - 1
        self._value >>= count
        self._count -= count
        return number

    def _refill(self) -> None:
        if self._position > len(self._data) + REFILL_BYTES:
            raise struct.error("truncated")
        piece = self._data[self._position : self._position + REFILL_BYTES]
        self._value |= int.from_bytes(piece, "little") << self._count
        # Zeros follow the end, because codes are looked up by more bits than they may have.
        self._position += REFILL_BYTES
        self._count += 8 * REFILL_BYTES

    def skip_image(self, width: int, height: int) -> set[int]:
        """Read an image. Returns the 16 bits of red and green that its pixels have, which are groups in the entropy
        image. Pixels that are copied from earlier ones, also by the cache, are left out: they have no others.

        Raises:
            struct.error: damaged.
            ImageTooLarge: too many pixels in all.
        """
        pixels = width * height
        self._scanned += pixels
        if self._scanned > MAX_SCANNED:
            raise ImageTooLarge(
                f"the lossless WebP has more than {MAX_SCANNED:,} blocks of transforms and codes, the limit; save it "
                "again with less effort, or as a PNG"
            )
        cache_bits = self.read(4) if self.read(1) else 0
        if cache_bits > MAX_CACHE_BITS:
            raise struct.error("the cache of colours is too large")
        colours = 1 << cache_bits if cache_bits else 0
        green = self._code(LITERALS + LENGTH_CODES + colours)
        red, blue, alpha = (self._code(LITERALS) for _ in range(3))
        distance = self._code(DISTANCE_CODES)
        groups: set[int] = set()
        while pixels > 0:
            symbol = self._symbol(green)
            if symbol < LITERALS:
                groups.add(self._symbol(red) << 8 | symbol)
                self._symbol(blue)
                self._symbol(alpha)
                pixels -= 1
            elif symbol < LITERALS + LENGTH_CODES:
                pixels -= self._number(symbol - LITERALS)
                self._number(self._symbol(distance))
            else:
                pixels -= 1
        return groups

    def _symbol(self, table: Sequence[int]) -> int:
        """The next symbol. A table has a power of two of entries, each a symbol and the length of its code."""
        if self._count < CODE_BITS:
            self._refill()
        entry = table[self._value & len(table) - 1]
        length = entry & 15
        self._value >>= length
        self._count -= length
        return entry >> 4

    def _number(self, symbol: int) -> int:
        """The length or distance that a symbol begins: its further bits follow."""
        if symbol < 4:
            return symbol + 1
        extra = symbol - 2 >> 1
        return (2 + (symbol & 1) << extra) + self.read(extra) + 1

    def _code(self, symbols: int) -> list[int]:
        """The table of a code for so many symbols. Raises struct.error for one that is not complete."""
        if self.read(1):
            is_pair, is_long = self.read(1), self.read(1)
            first = self.read(8 if is_long else 1)
            return [first << 4 | 1, self.read(8) << 4 | 1] if is_pair else [first << 4]
        lengths = [0] * len(LENGTHS_ORDER)
        for symbol in LENGTHS_ORDER[: 4 + self.read(4)]:
            lengths[symbol] = self.read(3)
        table = _table(lengths)
        left = 2 + self.read(2 + 2 * self.read(3)) if self.read(1) else symbols
        lengths, last = [], 8
        while len(lengths) < symbols and left:
            left -= 1
            length = self._symbol(table)
            if length < 16:
                lengths.append(length)
                last = length or last
            elif length == 16:
                lengths += [last] * (3 + self.read(2))
            else:
                lengths += [0] * (3 + self.read(3) if length == 17 else 11 + self.read(7))
        if len(lengths) > symbols:
            raise struct.error("a code has too many symbols")
        return _table(lengths)


def _table(lengths: Sequence[int]) -> list[int]:
    """The table of a canonical code, for `_Bits._symbol`, by the length of each symbol's code."""
    used = [symbol for symbol, length in enumerate(lengths) if length]
    if len(used) == 1:
        return [used[0] << 4]
    longest = max(lengths, default=0)
    table = [0] * (1 << longest)
    code = 0
    for length in range(1, longest + 1):
        for symbol in used:
            if lengths[symbol] == length:
                # The first bit of a code is the lowest one.
                first = int(f"{code:0{length}b}"[::-1], 2)
                if first >= len(table) or code >= 1 << length:
                    raise struct.error("a code is not complete")
                table[first :: 1 << length] = [symbol << 4 | length] * (1 << longest - length)
                code += 1
        code <<= 1
    if not used or code != 2 << longest:
        raise struct.error("a code is not complete")
    return table
