"""The headers of coded pictures, bit by bit: what HEVC and AV1 have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Coding:
    """What a sequence header declares.

    `width` and `height` in pixels. A pixel has `samples` samples in all planes: 1 if grey, 1.5 in 4:2:0, 2 in 4:2:2,
    3 in 4:4:4. Decoders store a sample in `sample_bytes`.
    """

    width: int
    height: int
    samples: float
    sample_bytes: int


class BitReader:
    """Reads numbers from bytes, highest bit first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, bits: int) -> int:
        """The next `bits` as a number. Raises IndexError beyond the end."""
        self._left -= bits
        if self._left < 0:
            raise IndexError("the header is truncated")
        return self._value >> self._left & (1 << bits) - 1

    def read_exp_golomb(self) -> int:
        """A number of at most 32 bits behind its length in zeros. Raises IndexError, ValueError."""
        zeros = 0
        while not self.read(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("a number has more than 32 bits")
        return (1 << zeros) - 1 + self.read(zeros)
