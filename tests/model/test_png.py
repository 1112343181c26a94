"""PNG files that the project writes, as Pillow and OpenCV read them."""

from __future__ import annotations

from io import BytesIO

import cv2
import numpy as np
import PIL.Image
import pytest

from model.png import png_bytes


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (33, 41)])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint16, 1), (np.uint8, 3)])
def test_readers_see_the_same_values(size: tuple[int, int], dtype: type[np.generic], channels: int) -> None:
    """Grey of 8 and 16 bits and RGB, also of a view that is not contiguous."""
    shape = (*size, channels) if channels > 1 else size
    top = int(np.iinfo(np.dtype(dtype)).max) + 1
    pixels = np.random.default_rng(4).integers(0, top, shape).astype(dtype)[:, ::-1]
    data = png_bytes(pixels)
    with PIL.Image.open(BytesIO(data)) as file:
        file.verify()
    with PIL.Image.open(BytesIO(data)) as file:
        assert file.mode == {1: "I;16" if dtype is np.uint16 else "L", 3: "RGB"}[channels]
        np.testing.assert_array_equal(np.asarray(file), pixels)
    by_opencv = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    np.testing.assert_array_equal(by_opencv if channels == 1 else by_opencv[:, :, ::-1], pixels)


def test_a_mask_is_small() -> None:
    """A mask of 3 megapixels takes some kilobytes."""
    y, x = np.mgrid[:1500, :2000]
    assert len(png_bytes(((y - 700) ** 2 + (x - 900) ** 2 < 300_000) * np.uint8(255))) < 15_000
