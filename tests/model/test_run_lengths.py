"""BMP's run lengths: the compiled code and Python's decode and refuse the same."""

from __future__ import annotations

import random

import pytest

from model.containers.bmp import run_lengths
from model.resize import COMPILED

if COMPILED:
    from model import _resample

pytestmark = pytest.mark.skipif(not COMPILED, reason="resample.c is not compiled")

WIDTH, HEIGHT = 13, 9
STEPS = [
    *(bytes((count, value)) for count in (1, 2, 5, 13) for value in (0, 1, 0x7A, 255)),
    *(bytes((0, count)) + bytes(range(1, 1 + count)) + bytes(count & 1) for count in (3, 4, 7, 13)),
    *(bytes((0, 2, x, y)) for x in (0, 1, 12) for y in (0, 1, 3)),
    *(b"\0\0",) * 12,
    b"\0\1",
]


def decoded(data: bytes, *, wide: bool, compiled: bool) -> bytes | None:
    """The indices; None: refused."""
    indices = bytearray(WIDTH * HEIGHT)
    try:
        if compiled:
            _resample.run_lengths(memoryview(data), wide, WIDTH, indices)
        else:
            run_lengths(data, wide, WIDTH, indices)
    except (IndexError, ValueError):
        return None
    return bytes(indices)


@pytest.mark.parametrize("wide", [False, True])
def test_both_decoders_agree(wide: bool) -> None:
    """On sequences of runs, whole, cut off and changed: the same pixels, or both refuse."""
    chance = random.Random(7)
    outcomes = [0, 0]
    for _ in range(4000):
        data = b"".join(chance.choices(STEPS, k=chance.randrange(1, 40)))
        match chance.randrange(3):
            case 0:
                data = data[: chance.randrange(len(data) + 1)]
            case 1:
                at = chance.randrange(len(data))
                data = data[:at] + bytes((chance.randrange(256),)) + data[at + 1 :]
        expected = decoded(data, wide=wide, compiled=False)
        assert decoded(data, wide=wide, compiled=True) == expected, data
        outcomes[expected is None] += 1
    assert min(outcomes) > 300, outcomes


def test_a_row_without_pixels_is_refused() -> None:
    """Before anything is divided by its width."""
    with pytest.raises(ValueError, match="a row must have a pixel"):
        _resample.run_lengths(memoryview(b"\0\1"), True, 0, bytearray(1))
