"""The bilinear resize, against OpenCV's: equal bit for bit. Copies of pixels, against NumPy's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from model.resize import COMPILED, _resize_bilinear, copy_pixels, resize_bilinear
from model.types import UInt8Array

RESIZES = [
    pytest.param(resize_bilinear, id="compiled", marks=pytest.mark.skipif(not COMPILED, reason="needs a C compiler")),
    pytest.param(_resize_bilinear, id="numpy"),
]


def by_opencv(pixels: UInt8Array, height: int, width: int) -> UInt8Array:
    resized = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8).reshape(height, width, -1)[:, :, :3]


def noise(rng: np.random.Generator, *shape: int) -> UInt8Array:
    """Of black and white, or of any values."""
    if rng.integers(2):
        return rng.integers(0, 2, shape, np.uint8) * np.uint8(255)
    return rng.integers(0, 256, shape, np.uint8)


def check(resize: object, pixels: UInt8Array, height: int, width: int) -> None:
    """The result equals OpenCV's, in a part of a larger array, around which nothing is written."""
    assert callable(resize)
    around = np.full((height + 1, width + 2, 3), 77, np.uint8)
    resize(pixels, around[:height, :width])
    np.testing.assert_array_equal(around[:height, :width], by_opencv(pixels, height, width))
    assert (around[height:] == 77).all()
    assert (around[:, width:] == 77).all()


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("seed", range(20))
def test_any_size_equals_opencvs(seed: int, resize: object) -> None:
    """Larger, smaller and by whole factors, three bytes a pixel or four, rows apart in memory or not."""
    rng = np.random.default_rng(seed)
    for number in range(30):
        height, width, new_height, new_width = (int(rng.integers(1, rng.choice([2, 9, 40, 200]))) for _ in range(4))
        if number % 3 == 0:
            height, width = new_height * int(rng.integers(1, 4)), new_width * int(rng.integers(1, 4))
        pixels = noise(rng, height + 1, width + int(rng.integers(3)), int(rng.choice([3, 4])))[:height, :width]
        check(resize, pixels, new_height, new_width)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("channels", [3, 4])
def test_half_the_size_equals_opencvs(channels: int, resize: object) -> None:
    """OpenCV averages squares of four pixels of a picture of exactly twice the height and width, but of no other."""
    rng = np.random.default_rng(7)
    for height, width in ((1, 1), (1, 9), (8, 8), (3, 10), (5, 33), (70, 90)):
        for more in (0, 1):
            check(resize, noise(rng, 2 * height, 2 * width + more, channels), height, width)


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((1500, 2000), (800, 1067)),
        ((1200, 1600), (600, 800)),
        ((375, 500), (800, 1067)),
        ((1, 1 << 21), (1, 1333)),
        ((90_000, 1), (1333, 1)),
        ((1, 1), (300, 400)),
    ],
)
def test_large_and_elongated_pictures_equal_opencvs(
    size: tuple[int, int], resized: tuple[int, int], resize: object
) -> None:
    """Sizes of photographs, and sides beyond what a float holds exactly."""
    check(resize, noise(np.random.default_rng(5), *size, 3), *resized)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5), (4, 6), (8, 7), (37, 41), (131, 263)])
def test_copies_mirror_and_turn(size: tuple[int, int], channels: int) -> None:
    """All eight orientations, with squares and their rests at each border; the fourth channel is left out."""
    source = noise(np.random.default_rng(2), *size, channels)
    for turned in (False, True):
        for rows in (1, -1):
            for columns in (1, -1):
                out = np.zeros((*(size[::-1] if turned else size), 3), np.uint8)
                view = out[::rows, ::columns]
                copy_pixels(source, view.transpose(1, 0, 2) if turned else view)
                expected = source[:, :, :3].transpose(1, 0, 2) if turned else source[:, :, :3]
                np.testing.assert_array_equal(view, expected)


def test_copies_reach_any_view() -> None:
    """Pixels with gaps between them get what they should, and the gaps keep theirs."""
    source = noise(np.random.default_rng(3), 20, 30, 3)
    wide = np.full((20, 60, 4), 9, np.uint8)
    copy_pixels(source, wide[:, ::2, :3])
    np.testing.assert_array_equal(wide[:, ::2, :3], source)
    assert (wide[:, 1::2] == 9).all()
    assert (wide[:, :, 3] == 9).all()


GOOD = np.zeros((4, 6, 3), np.uint8)
READ_ONLY = np.frombuffer(bytes(4 * 6 * 3), np.uint8).reshape(4, 6, 3)


@pytest.mark.skipif(not COMPILED, reason="needs a C compiler")
@pytest.mark.parametrize("function", [resize_bilinear, copy_pixels])
@pytest.mark.parametrize(
    ("source", "out"),
    [
        (GOOD[:, :, 0], GOOD),
        (GOOD[:, :, :2], GOOD),
        (GOOD[:, :0], GOOD),
        (GOOD, GOOD[:0]),
        (GOOD, GOOD[:, :, ::-1]),
        (GOOD, np.zeros((4, 6, 4), np.uint8)),
        (GOOD.astype(np.uint16), GOOD),
        (GOOD[:, ::-1], GOOD),
        (GOOD[:, ::2], GOOD),
        (GOOD, READ_ONLY),
    ],
)
def test_other_arrays_are_refused(function: object, source: UInt8Array, out: UInt8Array) -> None:
    """What is not such a picture, or cannot be written, is an error before any memory is touched."""
    assert callable(function)
    with pytest.raises((ValueError, BufferError)):
        function(source, out)


@pytest.mark.skipif(not COMPILED, reason="needs a C compiler")
def test_each_function_has_its_own_limits() -> None:
    """A resize writes rows; a copy has one size."""
    with pytest.raises(ValueError, match="rows must have adjacent pixels"):
        resize_bilinear(GOOD, GOOD.copy()[:, ::-1])
    with pytest.raises(ValueError, match="the same size"):
        copy_pixels(GOOD, np.zeros((6, 4, 3), np.uint8))
