from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from pycocotools import mask as coco

from model.postprocess.polygons import (
    Polygons,
    enclosed_area,
    outer_outlines,
    pixels_along,
    simplified,
    trace_polygons,
)
from model.types import BoolArray

# A warning of pycocotools itself with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def read(*rows: str) -> BoolArray:
    """A mask from its drawing, `#` is set."""
    return np.array([[letter == "#" for letter in row] for row in rows])


def outlines(pixels: BoolArray) -> Polygons:
    (polygons,) = trace_polygons(pixels, [True])
    return polygons


def filled_by_coco(polygons: Polygons, height: int, width: int) -> BoolArray:
    if not polygons:
        return np.zeros((height, width), np.bool_)
    filled: BoolArray = coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))).astype(np.bool_)
    return filled


def filled_by_opencv(polygons: Polygons, height: int, width: int) -> BoolArray:
    """At twice the size, where the centres of pixels are odd and no outline meets them (docs/clients.md)."""
    canvas = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [2 * np.array(polygon, np.int32).reshape(-1, 2)], 1)
    return canvas[1::2, 1::2].astype(np.bool_)


def filled_by_definition(polygons: Polygons, height: int, width: int) -> BoolArray:
    """The union of polygons by the even-odd rule: a ray from the pixel's centre to the left crosses how many sides."""
    mask = np.zeros((height, width), np.bool_)
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        crossed = np.zeros((height, width), np.int64)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            assert x0 == x1 or y0 == y1
            crossed[min(y0, y1) : max(y0, y1), x0:] += 1
        mask |= crossed % 2 == 1
    return mask


def assert_polygons_give_the_mask(pixels: BoolArray) -> None:
    polygons = outlines(pixels)
    for fill in (filled_by_coco, filled_by_opencv, filled_by_definition):
        np.testing.assert_array_equal(fill(polygons, *pixels.shape), pixels)
    for polygon in polygons:
        points = np.array(polygon).reshape(-1, 2)
        assert (points != np.roll(points, 1, axis=0)).any(axis=1).all(), "a side has no length"


@given(pixels=stn.arrays(np.bool_, stn.array_shapes(min_dims=2, max_dims=2, max_side=12)))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_polygons_give_the_mask_back(pixels: BoolArray) -> None:
    """Filled by pycocotools, by OpenCV, and by the even-odd rule, the polygons are the mask, pixel by pixel."""
    assert_polygons_give_the_mask(pixels)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.05, 0.95), sigma=st.sampled_from([0.0, 0.8, 2.0]))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_polygons_of_larger_masks_give_them_back(seed: int, share: float, sigma: float) -> None:
    """The same for masks of many holes, islands in holes, and parts of many sizes."""
    values = np.random.default_rng(seed).normal(size=(40, 60))
    if sigma:
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float64)
    assert_polygons_give_the_mask(values < np.quantile(values, share))


SHAPES = {
    "a hole": ("#####", "#...#", "#####"),
    "a hole of one pixel": ("###", "#.#", "###"),
    "an island in a hole in an island": ("#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"),
    "holes side by side": ("#######", "#.#.#.#", "#######"),
    "holes that share a seam's row": ("######", "#.#..#", "#..#.#", "######"),
    "holes that touch at a corner": ("####", "#.##", "##.#", "####"),
    "pixels that touch at a corner": ("#.", ".#"),
    "a ring that is open at a corner": ("###", "#.#", "##."),
    "a gap at the border": ("###", "#.#", "#.#"),
    "a hole in a comb": ("#.#.#", "#####", "#.#.#", "#####"),
    "a line": ("....", "####", "...."),
    "one pixel": ("...", ".#.", "..."),
    "the whole picture": ("###", "###"),
    "one row": ("#.##.",),
}


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, turns: int) -> None:
    """Shapes where outlines, holes and seams meet are given back, in each orientation."""
    assert_polygons_give_the_mask(np.ascontiguousarray(np.rot90(read(*SHAPES[name]), turns)))


def test_a_hole_is_cut_open_by_a_seam() -> None:
    """A mask with a hole is one ring. It enters the hole along a seam and leaves along the same one."""
    (polygon,) = outlines(read("####", "#..#", "####"))
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    assert points == [(0, 0), (4, 0), (4, 3), (0, 3), (0, 1), (1, 1), (1, 2), (3, 2), (3, 1), (1, 1), (0, 1)]


def test_a_part_is_one_polygon() -> None:
    """Each part of the mask is a polygon, an island in a hole too. Pixels that touch at a corner are two parts."""
    assert len(outlines(read(*SHAPES["an island in a hole in an island"]))) == 2
    assert len(outlines(read(*SHAPES["pixels that touch at a corner"]))) == 2
    assert len(outlines(read(*SHAPES["holes side by side"]))) == 1


def test_a_single_pixel_is_a_square() -> None:
    """Polygons follow pixel edges, in the frame of the boxes: the smallest has four corners."""
    ((polygon,),) = trace_polygons(np.ones((1, 1), np.bool_), [True], left=3, top=2)
    assert list(zip(polygon[::2], polygon[1::2], strict=True)) == [(3, 2), (4, 2), (4, 3), (3, 3)]


@given(
    labels=stn.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        stn.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.sampled_from([0, 1, 7, 255]),
    )
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_each_value_of_a_label_map_is_traced(labels: npt.NDArray[np.uint8]) -> None:
    """From one pass over a label map each value has the polygons of its own mask; an absent value has none."""
    values = [255, 0, 3, 7, 1]
    assert list(trace_polygons(labels, values)) == [outlines(labels == value) for value in values]


def test_class_indices_up_to_the_largest_are_traced() -> None:
    """The highest index of a uint16 label map is a class as others are, up to the border."""
    labels = np.full((2, 3), 65_535, np.uint16)
    assert list(trace_polygons(labels, [65_535])) == [[[0, 0, 3, 0, 3, 2, 0, 2]]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (4, 0)])
def test_a_map_without_pixels_has_no_polygons(shape: tuple[int, int]) -> None:
    """A region without pixels has no polygons."""
    assert outlines(np.zeros(shape, np.bool_)) == []


def test_points_are_bounded() -> None:
    """The densest masks have at most four points for each pixel, and three more for each hole."""
    checkers = np.indices((40, 40)).sum(axis=0) % 2 == 0
    dots = np.ones((41, 41), np.bool_)
    dots[1::2, 1::2] = False
    for pixels, holes in ((checkers, 0), (dots, 400)):
        points = sum(len(polygon) for polygon in outlines(pixels)) // 2
        assert points <= 4 * pixels.sum() + 3 * holes


@pytest.mark.parametrize("seed", range(150))
def test_outer_outlines_fill_parts_and_their_holes(seed: int) -> None:
    """Each pixel of the mask is in one outline. Filled by OpenCV along its pixels, an outline is a connected part with
    its holes; the areas fall."""
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(1, 20, 2))) < rng.random()
    _, parts = cv2.connectedComponents(mask.view(np.uint8), connectivity=4)
    covered = np.zeros_like(mask, np.uint8)
    areas = []
    for outline in outer_outlines(mask):
        pixels = pixels_along(outline)
        canvas = np.zeros(mask.shape, np.uint8)
        filled = np.asarray(cv2.fillPoly(canvas, [pixels.astype(np.int32)], 1), np.uint8)
        areas.append(enclosed_area(outline))
        assert filled.sum() == areas[-1]
        part = parts[pixels[0, 1], pixels[0, 0]]
        assert part > 0
        assert filled[parts == part].all()
        assert not (covered & filled).any()
        covered |= filled
    assert covered[mask].all()
    assert areas == sorted(areas, reverse=True)


def test_pixels_along_turn() -> None:
    """A rectangle has four corners, a slanting side none between its ends, and one pixel is one point."""
    mask = np.zeros((9, 9), np.bool_)
    mask[2:5, 1:8] = True
    (outline,) = outer_outlines(mask, 10, 20)
    assert sorted(pixels_along(outline).tolist()) == [[11, 22], [11, 24], [17, 22], [17, 24]]
    (outline,) = outer_outlines(np.tri(9, dtype=np.bool_))
    assert sorted(pixels_along(outline).tolist()) == [[0, 0], [0, 8], [8, 8]]
    (outline,) = outer_outlines(np.ones((1, 1), np.bool_))
    assert pixels_along(outline).tolist() == [[0, 0]]


@pytest.mark.parametrize("tolerance", [1.0, 2.0, 4.0])
def test_simplified_outlines_stay_near(tolerance: float) -> None:
    """A disc's outline loses most of its points, each of which is within the tolerance of what is left."""
    y, x = np.mgrid[:200, :200]
    (outline,) = outer_outlines((y - 90) ** 2 + (x - 100) ** 2 < 80**2)
    simple = simplified(outline, tolerance)
    assert 3 < len(simple) < len(outline) / 2
    ring = simple.astype(np.float32)
    assert all(abs(cv2.pointPolygonTest(ring, (float(x), float(y)), True)) <= tolerance + 1e-3 for x, y in outline)
