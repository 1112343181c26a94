from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.decode import Picture
from model.errors import ImageTooLarge
from model.preprocess import prepare_picture
from model.spec import KeepRatioSpec
from model.tiles import MAX_OVERLAP, Tiling, count_windows, plan_tiles, prepare_tiles
from model.types import Size

SPEC = KeepRatioSpec(long_side=320, short_side=224, pad_multiple=32)
SIDES = st.integers(1, 5000)


@given(
    picture=st.builds(Size, SIDES, SIDES),
    window=st.builds(Size, st.integers(32, 3000), st.integers(32, 3000)),
    overlap=st.floats(0, MAX_OVERLAP),
)
def test_windows_cover_the_picture(picture: Size, window: Size, overlap: float) -> None:
    """Windows have one size, lie within the picture, begin and end with it, and share the overlap or more."""
    grid = plan_tiles(picture, Tiling(window, overlap), SPEC, 10**9)
    assert len(grid) == count_windows(picture, Tiling(window, overlap), SPEC, 10**9) == len(list(grid.windows()))
    for starts, side, asked, length in (
        (grid.tops, grid.window.height, window.height, picture.height),
        (grid.lefts, grid.window.width, window.width, picture.width),
    ):
        assert side == min(asked, length)
        assert starts[0] == 0
        assert starts[-1] + side == length
        steps = np.diff(starts)
        assert (steps > 0).all()
        assert (side - steps >= np.floor(side * overlap)).all()


@pytest.mark.parametrize(("picture", "window"), [(Size(400, 600), Size(224, 320)), (Size(600, 400), Size(320, 224))])
def test_auto_is_the_models_input_size(picture: Size, window: Size) -> None:
    """By default windows are not scaled: they have the input's size, with its longer side along the picture's."""
    grid = plan_tiles(picture, Tiling(), SPEC, 64)
    assert grid.window == window
    model_input = prepare_picture(Picture(np.zeros((*astuple(window), 3), np.uint8), window), SPEC)
    assert model_input.geometry.scale_x == model_input.geometry.scale_y == 1


def test_auto_stays_within_the_limit() -> None:
    """Where windows of the input's size would be too many, they have the smallest multiple of it that is not."""
    picture = Size(4000, 6000)
    grid = plan_tiles(picture, Tiling(), SPEC, 64)
    multiple = grid.window.height // 224
    assert grid.window == Size(224 * multiple, 320 * multiple)
    assert len(grid) <= 64
    smaller = Size(224 * (multiple - 1), 320 * (multiple - 1))
    assert count_windows(picture, Tiling(smaller), SPEC, 64) > 64


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.7])
def test_too_many_windows_are_refused_with_a_size_that_fits(overlap: float) -> None:
    """The error has the number, the limit, and the smallest square that is within it."""
    picture = Size(4000, 6000)
    with pytest.raises(ImageTooLarge) as refused:
        plan_tiles(picture, Tiling(Size(100, 100), overlap), SPEC, 16)
    count = count_windows(picture, Tiling(Size(100, 100), overlap), SPEC, 16)
    assert f"{count:,} windows; the limit is 16" in str(refused.value)
    match = re.search(r"use tiles=(\d+)", str(refused.value))
    assert match is not None
    side = int(match[1])
    assert len(plan_tiles(picture, Tiling(Size(side, side), overlap), SPEC, 16)) <= 16
    assert count_windows(picture, Tiling(Size(side - 1, side - 1), overlap), SPEC, 16) > 16


def test_windows_are_cut_from_the_pixels_of_the_picture() -> None:
    """Each input is that of its part of the picture alone, whatever memory the picture is in; the whole one is last."""
    pixels = np.random.default_rng(1).integers(0, 256, (300, 500, 4), np.uint8)
    picture = Picture(pixels, Size(300, 500))
    grid = plan_tiles(picture.original, Tiling(Size(200, 240)), SPEC, 64)
    tiled = prepare_tiles(picture, SPEC, grid, whole=True, before_each=lambda: None)
    *windows, whole = tiled.windows()
    assert (whole.height, whole.width) == (300, 500)
    for window, found in zip(windows, tiled.inputs, strict=False):
        part = pixels[window.top :, window.left :][: window.height, : window.width, :3].copy()
        alone = prepare_picture(Picture(part, Size(window.height, window.width)), SPEC)
        assert np.array_equal(found.pixels, alone.pixels)
        assert found.geometry == alone.geometry
    assert np.array_equal(tiled.inputs[-1].pixels, prepare_picture(picture, SPEC).pixels)


def test_cutting_ends_where_nobody_waits() -> None:
    """Before each window there is a question whether to go on."""
    picture = Picture(np.zeros((400, 400, 3), np.uint8), Size(400, 400))
    grid = plan_tiles(picture.original, Tiling(Size(100, 100)), SPEC, 64)
    asked = 0

    def before_each() -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        prepare_tiles(picture, SPEC, grid, whole=False, before_each=before_each)
    assert asked == 3


def astuple(size: Size) -> tuple[int, int]:
    return size.height, size.width
