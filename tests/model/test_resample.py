"""The compiled resize, against Pillow's: equal bit for bit."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from model.decode import Picture
from model.preprocess import prepare, prepare_picture
from model.resize import COMPILED
from model.spec import CenterCropSpec
from model.types import Image, ModelInput, Size, UInt8Array

if COMPILED:
    from model import _resample

ROOT = Path(__file__).resolve().parents[2]
SPEC = CenterCropSpec()

pytestmark = pytest.mark.skipif(not COMPILED, reason="model/resample.c is not compiled: install with a C compiler")


def window(
    picture: PIL.Image.Image, resized: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]
) -> UInt8Array:
    out = np.full((*size, 3), 99, np.uint8)
    source = (picture.height, picture.width)
    _resample.window(picture.__arrow_c_array__(), source, resized, corner, size, out)
    return out


def whole(picture: PIL.Image.Image, height: int, width: int) -> UInt8Array:
    return np.asarray(picture.resize((width, height), PIL.Image.Resampling.BICUBIC))


def cropped_by_pillow(picture: PIL.Image.Image) -> UInt8Array:
    """The crop of a picture that is wider than high."""
    resized = whole(picture, 248, int(248 * picture.width / picture.height))
    left = round((resized.shape[1] - 224) / 2)
    return resized[12 : 12 + 224, left : left + 224]


def noise(height: int, width: int, seed: int, *, extreme: bool = False) -> PIL.Image.Image:
    values = np.random.default_rng(seed).integers(0, 2 if extreme else 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(values * 255 if extreme else values)


@pytest.mark.parametrize("seed", range(100))
def test_any_window_of_any_resize_equals_pillows(seed: int) -> None:
    """Larger, smaller, one pixel, either pass first; three bytes a pixel or four; black and white overshoot 8 bits."""
    rng = np.random.default_rng(seed)
    height, width, new_height, new_width = (int(rng.integers(1, rng.choice([2, 9, 90, 400]))) for _ in range(4))
    picture = noise(height, width, seed, extreme=seed % 2 == 0)
    expected = whole(picture, new_height, new_width)
    np.testing.assert_array_equal(window(picture, (new_height, new_width), (0, 0), (new_height, new_width)), expected)
    packed, of_packed = np.ascontiguousarray(picture), np.empty_like(expected)
    new_size = (new_height, new_width)
    _resample.window(packed, (height, width), new_size, (0, 0), new_size, of_packed)
    np.testing.assert_array_equal(of_packed, expected)
    for _ in range(4):
        top, left = int(rng.integers(new_height)), int(rng.integers(new_width))
        rows, columns = int(rng.integers(1, new_height - top + 1)), int(rng.integers(1, new_width - left + 1))
        part = window(picture, (new_height, new_width), (top, left), (rows, columns))
        np.testing.assert_array_equal(part, expected[top : top + rows, left : left + columns])


@pytest.mark.parametrize("columns", range(1, 20))
@pytest.mark.parametrize("left", range(20))
def test_every_position_of_a_crop_equals_pillows(left: int, columns: int) -> None:
    """Windows at every position, at the borders too."""
    picture = noise(33, 47, 5)
    size = (min(columns, 24 - left // 2), min(columns, 31 - left))
    part = window(picture, (24, 31), (left // 2, left), size)
    np.testing.assert_array_equal(part, whole(picture, 24, 31)[left // 2 :, left:][: size[0], : size[1]])


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((3, 90_000), (2, 300)),
        ((90_000, 3), (300, 2)),
        ((1, 1 << 20), (1, 7)),
        ((1 << 20, 1), (1, 1)),
        ((2, 1), (1, 9000)),
    ],
)
def test_very_elongated_pictures_equal_pillows(size: tuple[int, int], resized: tuple[int, int]) -> None:
    """Sides up to the longest allowed, scaled by factors of thousands."""
    picture = noise(*size, 3)
    np.testing.assert_array_equal(window(picture, resized, (0, 0), resized), whole(picture, *resized))


@pytest.mark.parametrize("extreme", [1, 2, 3, 5, 1000, 100_000, 1 << 20])
def test_no_sum_overflows(extreme: int) -> None:
    """A pixel's weights sum to one, however many they are: white stays white."""
    white = PIL.Image.new("RGB", (extreme, 1), (255, 255, 255))
    for width in (1, 2, 3, 7):
        np.testing.assert_array_equal(window(white, (1, width), (0, 0), (1, width)), whole(white, 1, width))


@pytest.mark.parametrize("size", [(500, 375), (640, 480), (401, 250), (300, 249), (2600, 1700)])
def test_the_crop_of_a_photograph_equals_pillows(size: tuple[int, int]) -> None:
    """The network's input is the crop of Pillow's resized picture, also if Pillow stores it in several blocks."""
    with PIL.Image.open(ROOT / "examples" / "cat.jpg") as file:
        picture = file.convert("RGB").resize(size)
    np.testing.assert_array_equal(prepare(Image(np.asarray(picture)), SPEC).pixels, cropped_by_pillow(picture))


def test_threads_are_independent() -> None:
    """Pictures processed at the same time give what each gives alone."""
    pictures = [noise(300 + 7 * seed, 400, seed) for seed in range(5)]
    expected = [cropped_by_pillow(picture) for picture in pictures]

    def prepared(index: int) -> ModelInput:
        picture = pictures[index]
        return prepare_picture(Picture(picture, Size(picture.height, picture.width)), SPEC)

    with ThreadPoolExecutor(4) as threads:
        for index, answer in enumerate(threads.map(prepared, [*range(5)] * 20)):
            np.testing.assert_array_equal(answer.pixels, expected[index % 5])


GOOD: dict[str, Any] = {
    "picture": bytes(4 * 5 * 4),
    "size": (4, 5),
    "resized": (6, 7),
    "corner": (1, 2),
    "window": (3, 4),
    "out": bytearray(3 * 4 * 3),
}
BIG = 1 << 31


@pytest.mark.parametrize(
    "wrong",
    [
        {"picture": bytes(4 * 5 * 2)},
        {"picture": bytes(4 * 5 * 3 + 1)},
        {"picture": b"", "size": (0, 5)},
        {"picture": PIL.Image.new("L", (5, 4)).__arrow_c_array__()},
        {"picture": PIL.Image.new("RGB", (4, 4)).__arrow_c_array__()},
        {"picture": (1, 2)},
        {"picture": PIL.Image.new("RGB", (5, 4)).__arrow_c_array__()[::-1]},
        {"picture": ()},
        {"picture": 5},
        {"size": (-4, -5)},
        {"size": ((1 << 20) + 1, 1)},
        {"size": (BIG, 5)},
        {"size": (4,)},
        {"resized": (0, 7)},
        {"resized": (6, (1 << 20) + 1)},
        {"resized": (6, -7)},
        {"corner": (-1, 2)},
        {"corner": (4, 2)},
        {"corner": (1, 4)},
        {"corner": (BIG - 1, 2)},
        {"window": (0, 4), "out": bytearray()},
        {"window": (-3, -4)},
        {"window": (6, 4), "out": bytearray(6 * 4 * 3)},
        {"window": (3, BIG - 1)},
        {"out": bytes(3 * 4 * 3)},
        {"out": bytearray(3 * 4 * 3 - 1)},
        {"out": bytearray(3 * 4 * 3 + 1)},
        {"out": np.zeros((3, 4, 6), np.uint8)[..., ::2]},
    ],
)
def test_arguments_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    """Sizes that do not fit together raise before anything is read or written beyond a buffer."""
    _resample.window(*GOOD.values())
    with pytest.raises((TypeError, ValueError, OverflowError, BufferError)):
        _resample.window(*(GOOD | wrong).values())


NO_ROOM = """
import resource
from model import _resample

side = 3000
picture, out = bytes(4 * side * side), bytearray(3 * side * (side - 1))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), -1))
try:
    _resample.window(picture, (side, side), (side, side - 1), (0, 0), (side, side - 1), out)
except MemoryError:
    out.append(0)
    print("refused")
"""


def test_out_of_memory_is_an_exception() -> None:
    """MemoryError leaves the process running and releases the buffers."""
    child = subprocess.run([sys.executable, "-c", NO_ROOM], cwd=ROOT, check=True, capture_output=True, text=True)
    assert child.stdout == "refused\n"


AT_THE_END_OF_MEMORY = """
import ctypes, mmap
import numpy as np
from model import _resample

ROOM = 1 << 20
room = mmap.mmap(-1, ROOM + mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(room))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + ROOM), mmap.PAGESIZE, 0) == 0
for height, width in ((1, 1), (5, 1), (1, 40), (40, 1), (33, 47), (47, 33), (90, 200), (400, 9)):
    for depth in (3, 4):
        size = height * width * depth
        picture = np.frombuffer(room, np.uint8, size, ROOM - size)
        for side in (1, 10, 12, 40, 224):
            out = np.empty((side, side, 3), np.uint8)
            _resample.window(picture, (height, width), (side, side), (0, 0), (side, side), out)
print("done")
"""


def test_no_byte_behind_the_picture_is_read() -> None:
    """Wide loads end with the picture: it may be the last thing in readable memory."""
    child = subprocess.run([sys.executable, "-c", AT_THE_END_OF_MEMORY], cwd=ROOT, capture_output=True, text=True)
    assert child.stdout == "done\n", f"exit status {child.returncode}: {child.stderr}"
