from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.preprocess import prepare
from model.spec import CenterCropSpec, FixedSizeSpec, KeepRatioSpec, Preprocessing
from model.types import Float32Array, Geometry, Image, ModelInput, Size
from tests.goldens import GOLDENS, requires_goldens

CLASSIFY = CenterCropSpec()
DETECT = KeepRatioSpec(long_side=1333, short_side=800, pad_multiple=32)
SEGMENT = KeepRatioSpec(long_side=2048, short_side=512)


def picture(height: int, width: int) -> Image:
    return Image(np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8))


def normalised(model_input: ModelInput, spec: Preprocessing) -> Float32Array:
    """float32 (3, h, w), as the network gets it: padding is zero after normalisation."""
    mean, std = np.array(spec.normalisation.mean, np.float32), np.array(spec.normalisation.std, np.float32)
    values = (model_input.pixels.astype(np.float32) - mean) / std
    if isinstance(spec, KeepRatioSpec):
        content = model_input.geometry.content
        values[content.height :] = 0
        values[:, content.width :] = 0
    return values.transpose(2, 0, 1)


@requires_goldens
@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("cls_a", CLASSIFY),
        ("cls_b", CLASSIFY),
        ("det_a", DETECT),
        ("det_b", DETECT),
        ("det_d", DETECT),
        ("seg_a", SEGMENT),
        ("seg_b", SEGMENT),
        ("seg_c", SEGMENT),
    ],
)
def test_inputs_equal_those_of_the_authors_pipelines(name: str, spec: Preprocessing) -> None:
    """Inputs equal those of the authors' toolboxes in every grey level."""
    with PIL.Image.open(GOLDENS / "images" / f"{name[-1]}.png") as file:
        image = Image(np.asarray(file.convert("RGB")))
    expected = np.load(GOLDENS / "inputs" / f"{name}.npz")["img"][0]
    # A grey level is 0.017 here; dividing by 255 first, as timm does, moves the last bit.
    np.testing.assert_allclose(normalised(prepare(image, spec), spec), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(427, 640), (30, 50), (9, 2000)])
def test_a_crop_may_be_resized_bilinearly(size: tuple[int, int]) -> None:
    """Equal to Pillow's antialiased bilinear filter, as timm takes it; of a thin picture up to rounding."""
    image = picture(*size)
    spec = CenterCropSpec(resize_shorter=40, crop=32, interpolation="bilinear")
    found = prepare(image, spec).pixels
    width = int(40 * size[1] / size[0])
    left = round((width - 32) / 2)
    whole = PIL.Image.fromarray(image.pixels).resize((width, 40), PIL.Image.Resampling.BILINEAR)
    expected = np.asarray(whole.crop((left, 4, left + 32, 36)))
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1 if size[1] > 1000 else 0)
    assert np.any(found != prepare(image, CenterCropSpec(resize_shorter=40, crop=32)).pixels)


def test_a_centre_crop_knows_its_resized_size() -> None:
    """A crop's geometry has the size of the whole resized picture; the longer side is rounded down."""
    assert prepare(picture(427, 640), CLASSIFY).geometry == Geometry(Size(427, 640), Size(248, 371))
    assert prepare(picture(640, 427), CLASSIFY).geometry == Geometry(Size(640, 427), Size(371, 248))


@pytest.mark.parametrize(("length", "first"), [(8, 2), (9, 2), (10, 3), (11, 4), (4, 0), (5, 0)])
def test_a_centre_crop_begins_where_torchvisions_does(length: int, first: int) -> None:
    """A margin of half a pixel is rounded to the even side."""
    image = picture(4, length)
    cropped = prepare(image, CenterCropSpec(resize_shorter=4, crop=4)).pixels
    np.testing.assert_array_equal(cropped, image.pixels[:, first : first + 4])


@pytest.mark.parametrize(("crop", "before", "after"), [(6, 1, 1), (7, 1, 2), (9, 2, 3)])
def test_a_crop_larger_than_the_picture_is_padded(crop: int, before: int, after: int) -> None:
    """A crop beyond the resized picture is padded with zeros, the odd pixel to the right and below."""
    image = picture(4, 4)
    cropped = prepare(image, CenterCropSpec(resize_shorter=4, crop=crop)).pixels
    np.testing.assert_array_equal(cropped, np.pad(image.pixels, ((before, after), (before, after), (0, 0))))


@pytest.mark.parametrize("size", [(20, 1000), (1000, 20), (300, 12_000), (12_000, 300)])
def test_the_window_of_a_thin_picture_equals_the_crop_of_the_whole(size: tuple[int, int]) -> None:
    """Of a thin picture only the middle is resized; the pixels equal those of the whole, resized."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(columns / 7 + shift) + 60 * np.sin(rows / 9) for shift in range(3)]
    pixels = np.stack(waves, axis=2).astype(np.uint8)
    model_input = prepare(Image(pixels), CLASSIFY)
    content = model_input.geometry.content
    whole = PIL.Image.fromarray(pixels).resize((content.width, content.height), PIL.Image.Resampling.BICUBIC)
    left, top = round((content.width - 224) / 2), round((content.height - 224) / 2)
    expected = np.asarray(whole)[top : top + 224, left : left + 224]
    assert np.abs(model_input.pixels.astype(int) - expected).max() <= 1


def test_keeping_the_ratio_rounds_to_the_nearest_pixel_and_pads_with_zeros() -> None:
    """The content is at the top left; sizes are rounded; the padding reaches the next multiple and is zero."""
    model_input = prepare(Image(np.full((375, 500, 3), 7, np.uint8)), DETECT)
    assert model_input.geometry == Geometry(Size(375, 500), Size(800, 1067))
    assert model_input.pixels.shape == (800, 1088, 3)
    assert (model_input.pixels[:, :1067] == 7).all()
    assert not model_input.pixels[:, 1067:].any()


@pytest.mark.parametrize("channels", [3, 4])
def test_a_fixed_size_is_opencvs_resize(channels: int) -> None:
    """As mmcv's `imresize` to (width, height): each axis by its own scale, then padding with zeros."""
    image = picture(75, 51)
    pixels = np.dstack([image.pixels, np.full((75, 51), 9, np.uint8)])[:, :, :channels]
    model_input = prepare(Image(np.ascontiguousarray(pixels)), FixedSizeSpec(width=100, height=40, pad_multiple=32))
    assert model_input.geometry == Geometry(Size(75, 51), Size(40, 100))
    assert model_input.pixels.shape == (64, 128, 3)
    expected = cv2.resize(image.pixels, (100, 40), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(model_input.pixels[:40, :100], expected)
    assert not model_input.pixels[40:].any()
    assert not model_input.pixels[:, 100:].any()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(75, 51), (51, 75), (300, 8)])
def test_a_squashed_picture_is_pillows_resize(
    size: tuple[int, int], interpolation: Literal["bicubic", "bilinear"]
) -> None:
    """As timm's crop mode `squash`: both sides to one length, then the centre."""
    image = picture(*size)
    model_input = prepare(image, CenterCropSpec(resize_shorter=64, crop=56, interpolation=interpolation, squash=True))
    assert model_input.geometry.content == Size(64, 64)
    resampling = PIL.Image.Resampling[interpolation.upper()]
    whole = np.asarray(PIL.Image.fromarray(image.pixels).resize((64, 64), resampling))
    assert np.array_equal(model_input.pixels, whole[4:60, 4:60])


def test_a_side_is_at_least_one_pixel() -> None:
    """A picture of one row keeps one row at any scale."""
    model_input = prepare(picture(1, 10_000), DETECT)
    assert model_input.geometry.content == Size(1, 1333)
    assert model_input.pixels.shape == (32, 1344, 3)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_every_picture_makes_an_input_of_bounded_size(height: int, width: int) -> None:
    """Whatever the aspect ratio, the input is contiguous and no larger than the spec allows."""
    image = Image(np.zeros((height, width, 3), np.uint8))
    cropped = prepare(image, CenterCropSpec(resize_shorter=24, crop=22)).pixels
    assert cropped.shape == (22, 22, 3)
    assert cropped.flags.c_contiguous
    model_input = prepare(image, KeepRatioSpec(long_side=90, short_side=60, pad_multiple=32))
    padded_height, padded_width, _ = model_input.pixels.shape
    assert model_input.pixels.flags.c_contiguous
    assert padded_height % 32 == padded_width % 32 == 0
    assert max(padded_height, padded_width) <= 96
    content = model_input.geometry.content
    assert max(content.height, content.width) <= 90
    assert min(content.height, content.width) <= 60


@pytest.mark.parametrize("size", [(1, 1), (1, 2_000_000), (2_000_000, 1), (2, 65_535)])
def test_the_thinnest_pictures_are_prepared(size: tuple[int, int]) -> None:
    """A line of two million pixels, which would fill the memory if resized whole, gives an input."""
    image = Image(np.full((*size, 3), 9, np.uint8))
    cropped = prepare(image, CLASSIFY)
    assert cropped.pixels.shape == (224, 224, 3)
    assert (cropped.pixels == 9).all()
    assert min(cropped.geometry.content.height, cropped.geometry.content.width) == 248
