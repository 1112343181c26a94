from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from pycocotools import mask as coco

from convmlp_client.geometry import ImageSize
from convmlp_client.masks import Mask, Polygons
from model.postprocess.masks import RegionMask, encode_png, encode_polygons
from model.types import Size

# A warning of pycocotools itself with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

BoolArray = npt.NDArray[np.bool_]

SHAPES = stn.array_shapes(min_dims=2, max_dims=2, max_side=40)
SPECKLED = stn.arrays(np.bool_, SHAPES)
# Runs of many lengths: their differences need several characters, of either sign.
BLOCKS = SPECKLED.map(lambda mask: np.kron(mask, np.ones((23, 3), np.bool_)))


def mask_of(pixels: BoolArray, data: str | bytes | Polygons) -> Mask:
    return Mask(ImageSize(pixels.shape[1], pixels.shape[0]), data)


def coco_counts(pixels: BoolArray) -> str:
    counts: bytes = coco.encode(np.asfortranarray(pixels, np.uint8))["counts"]
    return counts.decode()


def region_mask(pixels: BoolArray) -> RegionMask:
    return RegionMask(0, 0, pixels, Size(*pixels.shape))


def polygons_of(pixels: BoolArray) -> Polygons:
    return tuple(tuple(polygon) for polygon in encode_polygons(region_mask(pixels)))


@given(SPECKLED | BLOCKS)
def test_run_lengths_of_pycocotools_are_decoded(pixels: BoolArray) -> None:
    """A mask encoded by pycocotools is decoded exactly, and its area is right."""
    mask = mask_of(pixels, coco_counts(pixels))
    assert mask.to_array().dtype == np.bool_
    np.testing.assert_array_equal(mask.to_array(), pixels)
    assert mask.area == pixels.sum()


@given(SPECKLED | BLOCKS)
def test_run_lengths_equal_those_of_pycocotools(pixels: BoolArray) -> None:
    """The run lengths of an array equal those of pycocotools, byte for byte."""
    mask = Mask.from_array(pixels)
    assert mask == mask_of(pixels, coco_counts(pixels))
    assert mask.rle() == {"size": list(pixels.shape), "counts": coco_counts(pixels)}


@given(SPECKLED)
def test_png_masks_are_decoded(pixels: BoolArray) -> None:
    """The service's PNG is decoded exactly, and gives the same run lengths and area."""
    mask = mask_of(pixels, encode_png(region_mask(pixels)))
    np.testing.assert_array_equal(mask.to_array(), pixels)
    assert mask.rle()["counts"] == coco_counts(pixels)
    assert mask.area == pixels.sum()


@given(SPECKLED)
def test_polygons_are_filled_exactly(pixels: BoolArray) -> None:
    """The service's polygons give its mask back, pixel by pixel, holes included."""
    mask = mask_of(pixels, polygons_of(pixels))
    np.testing.assert_array_equal(mask.to_array(), pixels)
    assert mask.area == pixels.sum()


def test_polygons_contain_pixel_centres() -> None:
    """A pixel belongs to a polygon if its centre lies inside. Pixels outside of the image are left out."""
    triangle = Mask(ImageSize(6, 4), ((-2.0, -2.0, 9.0, -2.0, -2.0, 9.0),))
    rows, columns = np.mgrid[:4, :6] + 0.5
    np.testing.assert_array_equal(triangle.to_array(), rows + columns < 7)
    sliver = Mask(ImageSize(6, 4), ((1.6, 0.0, 2.4, 0.0, 2.4, 4.0, 1.6, 4.0),))
    assert sliver.area == 0


@pytest.mark.parametrize("form", ["rle", "png", "polygons"])
def test_a_region_contains_the_mask(form: str) -> None:
    """A region at its place equals the whole mask. For run lengths and polygons it is no larger than needed."""
    pixels = np.zeros((30, 50), np.bool_)
    pixels[10:20, 5:9] = True
    forms: dict[str, str | bytes | Polygons] = {
        "rle": coco_counts(pixels),
        "png": encode_png(region_mask(pixels)),
        "polygons": polygons_of(pixels),
    }
    region = mask_of(pixels, forms[form]).region()
    height, width = region.pixels.shape
    whole = np.zeros_like(pixels)
    whole[region.top : region.top + height, region.left : region.left + width] = region.pixels
    np.testing.assert_array_equal(whole, pixels)
    assert form == "png" or (region.left, width) == (5, 4)


@pytest.mark.parametrize("data", [coco_counts(np.zeros((3, 4), np.bool_)), ()])
def test_an_empty_mask_is_empty(data: str | Polygons) -> None:
    """An empty mask has the image's shape and area 0."""
    mask = Mask(ImageSize(4, 3), data)
    assert mask.to_array().shape == (3, 4)
    assert mask.area == 0
    assert not mask.to_array().any()


def png(mode: str, size: tuple[int, int], form: str = "PNG") -> bytes:
    file = io.BytesIO()
    PIL.Image.new(mode, size).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "do not fit an image"),
        ("5", "do not fit an image"),
        (coco_counts(np.ones((4, 4), np.bool_)), "do not fit an image"),
        ("0" * 12, "do not fit an image"),
        ("\x1f", "compressed form"),
        ("p", "compressed form"),
        ("P", "compressed form"),
        ("P" * 30 + "1", "compressed form"),
        ("\xe9", "compressed form"),
        ("N1", "do not fit an image"),
        (b"", "not a complete PNG"),
        (png("L", (4, 3))[:-30], "not a complete PNG"),
        (png("L", (4, 3), "BMP"), "not a complete PNG"),
        (png("L", (3, 4)), "the mask is 3 x 4, its image 4 x 3"),
        (((0.0, 0.0, 1.0, 1.0),), "three points"),
        (((0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0),), "three points"),
        (((0.0, 0.0, float("nan"), 1.0, 2.0, 2.0),), "malformed"),
        (((0.0, 0.0, 1e300, 1.0, 2.0, 2.0),), "malformed"),
    ],
)
def test_malformed_masks_are_an_error(data: str | bytes | Polygons, why: str) -> None:
    """Malformed data, or data of another image size, raises ValueError in every method that decodes."""
    mask = Mask(ImageSize(4, 3), data)
    with pytest.raises(ValueError, match=why):
        mask.to_array()
    with pytest.raises(ValueError, match=why):
        _ = mask.area


@given(st.text("0123456789:;<=>?@ABCDEFNOPQRSTUVWXYZ[\\]^_`abcdefghijklmno", max_size=60))
def test_any_text_is_a_mask_or_an_error(counts: str) -> None:
    """Any run lengths give a mask of the image's shape, or ValueError."""
    mask = Mask(ImageSize(9, 7), counts)
    try:
        pixels = mask.to_array()
    except ValueError:
        return
    assert pixels.shape == (7, 9)


def test_to_json_equals_the_rest_api() -> None:
    """`to_json` gives run lengths, base64, or lists in which integers remain integers."""
    pixels = np.ones((2, 3), np.bool_)
    data = encode_png(region_mask(pixels))
    forms: list[tuple[str | bytes | Polygons, Any]] = [
        ("06", {"size": [2, 3], "counts": "06"}),
        (data, base64.b64encode(data).decode()),
        (((0, 0, 3, 0, 3, 2, 0, 2.5),), [[0, 0, 3, 0, 3, 2, 0, 2.5]]),
    ]
    for given_, json in forms:
        assert mask_of(pixels, given_).to_json() == json
