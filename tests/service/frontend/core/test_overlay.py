from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from convmlp_client.drawing import BACKGROUND
from model.types import (
    BoolArray,
    Box,
    ClassifyResult,
    Detection,
    DetectResult,
    Image,
    Label,
    LabelMapArray,
    Segment,
    SegmentResult,
    Size,
    SoftMask,
)
from service.frontend.core.overlay import (
    MAX_OVERLAY_PIXELS,
    MAX_OVERLAY_SIDE,
    PictureFormat,
    encode_class_colours,
    encode_label_map,
    encode_picture,
    render,
)


def grey(height: int, width: int, level: int = 120) -> Image:
    return Image(np.full((height, width, 3), level, np.uint8))


def labels(size: Size, count: int = 5, name: str = "cat") -> ClassifyResult:
    return ClassifyResult(size, tuple(Label(name, index, 1 / (index + 2)) for index in range(count)))


def detection(box: Box, index: int = 1, inside: Sequence[Sequence[float]] | None = None) -> Detection:
    mask = None if inside is None else SoftMask(np.array(inside, np.float32), 0.5)
    return Detection("cat", index, 0.9, box, mask)


def segmentation(label_map: LabelMapArray, names: Sequence[str]) -> SegmentResult:
    areas = np.bincount(label_map.ravel(), minlength=len(names))
    segments = tuple(Segment(name, index, int(areas[index]), 0.5) for index, name in enumerate(names) if areas[index])
    return SegmentResult(Size(*label_map.shape), label_map, segments)


def changed(before: Image, after: Image) -> BoolArray:
    """Where a pixel differs, bool (H, W)."""
    return np.asarray(np.any(before.pixels != after.pixels, axis=2))


def test_the_picture_itself_is_left_alone() -> None:
    """Drawing happens on a copy, for each task."""
    for result in (
        labels(Size(60, 80)),
        DetectResult(Size(60, 80), (detection(Box(5, 5, 50, 50), inside=[[9.0]]),)),
        segmentation(np.ones((60, 80), np.uint8), ("a", "b")),
    ):
        image = grey(60, 80)
        drawn = render(image, result)
        assert (image.pixels == 120).all()
        assert drawn.pixels.shape == image.pixels.shape
        assert drawn.pixels.dtype == np.uint8
        assert changed(image, drawn).any()


@pytest.mark.parametrize("size", [Size(1, 1), Size(1, 500), Size(500, 1), Size(9, 9), Size(33, 20)])
def test_tiny_pictures_are_drawn(size: Size) -> None:
    """A picture too small for letters still gets its overlay, of its own size."""
    image = grey(size.height, size.width)
    long_name = "a name that is much longer than the picture is wide"
    results = (
        labels(size, name=long_name),
        DetectResult(size, (detection(Box(0, 0, size.width, size.height), inside=[[5.0]]),)),
        segmentation(np.ones((size.height, size.width), np.uint8), ("a", long_name)),
    )
    for result in results:
        assert render(image, result).size == size


def test_nothing_found_draws_nothing() -> None:
    """Without labels, detections or tinted segments the overlay is the picture."""
    image, size = grey(60, 80), Size(60, 80)
    nothing = (
        ClassifyResult(size, ()),
        DetectResult(size, ()),
        segmentation(np.zeros((60, 80), np.uint8), (BACKGROUND, "b")),
    )
    for result in nothing:
        assert np.array_equal(render(image, result).pixels, image.pixels)


def test_mask_tints_its_pixels_only() -> None:
    """A mask's half is tinted and the other half is not."""
    image = grey(400, 600)
    box = Box(100, 100, 500, 300)
    drawn = render(image, DetectResult(image.size, (detection(box, inside=[[9.0] * 14 + [-9.0] * 14] * 28),)))
    tinted = changed(image, drawn)
    assert tinted[130:270, 110:290].all()
    assert not tinted[130:270, 310:490].any()


def test_segments_are_tinted_and_background_is_not() -> None:
    """Each class has its tint, away from its border; what is called background keeps its pixels."""
    label_map = np.zeros((400, 600), np.uint8)
    label_map[:, 200:400] = 1
    label_map[:, 400:] = 2
    image = grey(400, 600)
    drawn = render(image, segmentation(label_map, (BACKGROUND, "cat", "dog"))).pixels
    assert (drawn[300:, :190] == 120).all()
    cat, dog = drawn[300:, 210:390].reshape(-1, 3), drawn[300:, 410:].reshape(-1, 3)
    assert (cat == cat[0]).all()
    assert (dog == dog[0]).all()
    assert len({tuple(cat[0]), tuple(dog[0]), (120, 120, 120)}) == 3


def test_wide_label_maps_are_tinted() -> None:
    """Classes beyond 256 have their own colours as well."""
    label_map = np.full((100, 100), 299, np.uint16)
    label_map[:, 50:] = 43  # 299 in eight bits
    drawn = render(grey(100, 100), segmentation(label_map, [str(index) for index in range(300)])).pixels
    assert not np.array_equal(drawn[90, 10], drawn[90, 90])


@pytest.mark.parametrize("size", [Size(4200, 4200), Size(20_000, 100)])
def test_very_large_pictures_are_scaled_down(size: Size) -> None:
    """Beyond the bound the overlay keeps the proportions, and its boxes their places."""
    image = grey(size.height, size.width)
    box = Box(0.25 * size.width, 0.25 * size.height, 0.75 * size.width, 0.75 * size.height)
    drawn = render(image, DetectResult(size, (detection(box, inside=[[9.0]]),)))
    height, width, _ = drawn.pixels.shape
    assert height * width <= MAX_OVERLAY_PIXELS
    assert max(height, width) <= MAX_OVERLAY_SIDE
    assert height / width == pytest.approx(size.height / size.width, rel=0.02)
    assert (drawn.pixels[height // 2, width // 2] != 120).any()
    assert (drawn.pixels[height - 5, width // 2] == 120).all()
    segments = render(image, segmentation(np.ones((size.height, size.width), np.uint8), ("a", "b")))
    assert segments.pixels.shape == drawn.pixels.shape


@pytest.mark.parametrize(("form", "name"), list(zip(PictureFormat, ("PNG", "JPEG", "WEBP"), strict=True)))
def test_pictures_are_encoded(form: PictureFormat, name: str) -> None:
    """An encoded picture opens as its format, with red where red was."""
    image = grey(40, 60)
    image.pixels[:] = (200, 30, 40)
    opened = PIL.Image.open(io.BytesIO(encode_picture(image, form)))
    assert (opened.format, opened.mode, opened.size) == (name, "RGB", (60, 40))
    assert np.abs(np.asarray(opened, int) - (200, 30, 40)).max() <= 6


RAMP = np.linspace(0, 1, 40 * 60).reshape(40, 60)


@pytest.mark.parametrize(
    ("label_map", "mode"), [((RAMP * 255).astype(np.uint8), "L"), ((RAMP * 999).astype(np.uint16), "I;16")]
)
def test_label_maps_are_encoded_exactly(label_map: LabelMapArray, mode: str) -> None:
    """A label map comes back exactly, in 8 bit, or 16 where the classes are too many."""
    opened = PIL.Image.open(io.BytesIO(encode_label_map(label_map)))
    assert (opened.format, opened.mode) == ("PNG", mode)
    assert np.array_equal(np.asarray(opened), label_map)


def test_a_palette_replaces_the_colours_of_labels() -> None:
    """Tints, boxes, tags and legends have the model's colours; black text where the colour is light."""
    palette = ((0, 0, 0), (250, 250, 10), (1, 2, 250))
    image = grey(400, 600)
    box = Box(300, 200, 500, 300)
    drawn = render(image, DetectResult(image.size, (detection(box, inside=[[9.0]]),), palette)).pixels
    assert (drawn == palette[1]).all(axis=2).sum() > 500
    label_map = np.full((400, 600), 2, np.uint8)
    drawn = render(image, replace(segmentation(label_map, ("a", "b", "c")), palette=palette)).pixels
    assert np.allclose(drawn[390, 590], (np.array(palette[2]) * 115 + 120 * 140) / 255, atol=1)
    assert (drawn == palette[2]).all(axis=2).sum() > 100
    drawn = render(image, ClassifyResult(image.size, labels(image.size, 2).labels, palette)).pixels
    assert (drawn == palette[1]).all(axis=2).sum() > 100


def test_label_maps_of_more_than_256_classes_are_encoded_in_colours() -> None:
    """RGB, since a PNG's palette has 256 colours; a class without a colour is black."""
    label_map = np.array([[0, 299, 300]], np.uint16)
    with PIL.Image.open(io.BytesIO(encode_class_colours(label_map, {0: (1, 2, 3), 299: (4, 5, 6)}))) as opened:
        assert np.asarray(opened.convert("RGB")).tolist() == [[[1, 2, 3], [4, 5, 6], [0, 0, 0]]]
