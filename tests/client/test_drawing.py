from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import PIL.Image
import pytest

from convmlp_client.drawing import BACKGROUND, label_colour
from convmlp_client.geometry import Box, ImageSize
from convmlp_client.masks import Mask
from convmlp_client.results import (
    Analysis,
    Classification,
    Detection,
    Detections,
    Label,
    Meta,
    Segment,
    Segmentation,
    Task,
)

UInt8Array = npt.NDArray[np.uint8]

NAMES = {1: "cat", 3: "dog", 4: "cow"}
"""Of detections, by index."""


def grey(height: int, width: int, level: int = 120) -> UInt8Array:
    return np.full((height, width, 3), level, np.uint8)


def classification(height: int, width: int, count: int = 5, name: str = "cat") -> Classification:
    labels = tuple(Label(name, index, 1 / (index + 2)) for index in range(count))
    return Classification(ImageSize(width, height), labels, Meta("model", Task.CLASSIFY))


def detections(height: int, width: int, *found: Detection) -> Detections:
    return Detections(ImageSize(width, height), found, Meta("model", Task.DETECT))


def detection(box: Box, index: int = 1, mask: npt.NDArray[np.bool_] | None = None) -> Detection:
    return Detection(NAMES[index], index, 0.9, box, None if mask is None else Mask.from_array(mask))


def segmentation(label_map: npt.NDArray[np.integer], names: Sequence[str]) -> Segmentation:
    height, width = label_map.shape
    segments = [
        Segment(name, index, int((label_map == index).sum()), 0.5, Mask.from_array(label_map == index))
        for index, name in enumerate(names)
        if (label_map == index).any()
    ]
    return Segmentation(ImageSize(width, height), tuple(segments), Meta("model", Task.SEGMENT))


def drawn(image: UInt8Array, result: Classification | Detections | Segmentation) -> UInt8Array:
    return np.asarray(result.draw(image))


def changed(before: UInt8Array, after: UInt8Array) -> npt.NDArray[np.bool_]:
    """Where a pixel differs, bool (H, W)."""
    return np.asarray(np.any(before != after, axis=2))


def test_drawing_copies_the_image() -> None:
    """Each task draws on a copy, which is RGB and has the image's size."""
    for result in (
        classification(60, 80),
        detections(60, 80, detection(Box(5, 5, 50, 50), mask=np.ones((60, 80), np.bool_))),
        segmentation(np.ones((60, 80), np.uint8), ("a", "b")),
    ):
        image = PIL.Image.fromarray(grey(60, 80))
        overlay = result.draw(image)
        assert (overlay.mode, overlay.size) == ("RGB", image.size)
        assert (np.asarray(image) == 120).all()
        assert changed(np.asarray(image), np.asarray(overlay)).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (9, 9), (33, 20)])
def test_tiny_images_are_drawn(size: tuple[int, int]) -> None:
    """An image too small for text still gets an overlay of its own size."""
    long_name = "a name that is much longer than the picture is wide"
    height, width = size
    for result in (
        classification(*size, name=long_name),
        detections(*size, detection(Box(0, 0, width, height), mask=np.ones(size, np.bool_))),
        segmentation(np.ones(size, np.uint8), ("a", long_name)),
    ):
        assert drawn(grey(*size), result).shape == (*size, 3)


def test_nothing_found_draws_nothing() -> None:
    """Without labels, detections or tinted segments the overlay equals the image."""
    image = grey(60, 80)
    background = segmentation(np.zeros((60, 80), np.uint8), (BACKGROUND, "b"))
    for result in (classification(60, 80, count=0), detections(60, 80), background):
        np.testing.assert_array_equal(drawn(image, result), image)


def test_box_is_drawn_where_it_is() -> None:
    """The outline of a box lies on its edges, and changes no pixel inside or outside."""
    image = grey(400, 600)
    overlay = drawn(image, detections(400, 600, detection(Box(100, 150, 300, 350), index=1)))
    for y, x in ((250, 100), (250, 299), (349, 200), (151, 290)):
        assert tuple(overlay[y, x]) == label_colour("cat"), (y, x)
    assert not changed(image, overlay)[170:330, 120:280].any()
    assert not changed(image, overlay)[360:].any()
    assert not changed(image, overlay)[:, 310:].any()


def test_tags_stay_within_the_image() -> None:
    """The tag of a box at a corner or edge is moved into the image."""
    for box in (Box(0, 0, 600, 400), Box(590, 0, 600, 10), Box(590, 390, 600, 400), Box(0, 390, 10, 400)):
        overlay = drawn(grey(400, 600), detections(400, 600, detection(box)))
        text = np.all(overlay < 60, axis=2) | np.all(overlay > 195, axis=2)
        assert text.sum() > 60


def test_a_tag_is_drawn_right_of_the_panels() -> None:
    """Of several answers on one picture, no panel hides the label of a box."""
    image, size = grey(256, 320), ImageSize(320, 256)
    box = detections(256, 320, detection(Box(20, 20, 200, 200), index=1))
    answers: dict[str, Classification | Detections] = {"classify": classification(256, 320), "detect": box}
    overlay = np.asarray(Analysis(size, answers, {}, Meta("", Task.ANALYZE)).draw(image))
    colour = np.all(overlay == np.array(label_colour("cat")), axis=2)
    assert colour[:20, 60:].sum() > colour[:20, :60].sum()


def test_masks_tint_only_their_pixels() -> None:
    """The pixels of a mask are tinted evenly, and no others."""
    mask = np.zeros((400, 600), np.bool_)
    mask[100:300, 100:300] = True
    image = grey(400, 600)
    overlay = drawn(image, detections(400, 600, detection(Box(100, 100, 500, 300), mask=mask)))
    tint = 120 * 140 / 255 + np.array(label_colour("cat")) * 115 / 255
    assert np.abs(overlay[130:290, 110:290] - tint).max() <= 1
    assert not changed(image, overlay)[130:270, 310:490].any()


def test_the_best_detection_is_on_top() -> None:
    """Where boxes overlap, the outline of the one with the higher score is visible."""
    box = Box(100, 100, 200, 200)
    overlay = drawn(grey(400, 600), detections(400, 600, detection(box, index=3), detection(box, index=4)))
    assert tuple(overlay[150, 100]) == label_colour("dog")


def test_segments_are_tinted_and_background_is_not() -> None:
    """Each class has its tint away from its border. The class "background" is not tinted."""
    label_map = np.zeros((400, 600), np.uint8)
    label_map[:, 200:400] = 1
    label_map[:, 400:] = 2
    overlay = drawn(grey(400, 600), segmentation(label_map, (BACKGROUND, "cat", "dog")))
    assert (overlay[300:, :190] == 120).all()
    for name, columns in (("cat", slice(210, 390)), ("dog", slice(410, None))):
        tint = 120 * 140 / 255 + np.array(label_colour(name)) * 115 / 255
        assert np.abs(overlay[300:, columns] - tint).max() <= 1


@pytest.mark.parametrize(("side", "line"), [(100, 1), (500, 1), (1500, 3), (2000, 4)])
def test_segments_have_borders(side: int, line: int) -> None:
    """Borders in either direction are white and half as wide as the outline of a box."""
    label_map = np.zeros((side, side), np.uint8)
    label_map[side // 2 :] = 1
    white = (drawn(grey(side, side), segmentation(label_map, ("a", "b"))) == 255).all(axis=2)
    rows = np.flatnonzero(white[:, -1])
    assert len(rows) == line
    assert abs(rows.mean() - (side / 2 - 0.5)) <= 0.5
    turned = (drawn(grey(side, side), segmentation(label_map.T, ("a", "b"))) == 255).all(axis=2)
    np.testing.assert_array_equal(turned[-1], white[:, -1])


def test_large_images_are_tinted_completely() -> None:
    """An image tinted in several strips has the right tint in every strip."""
    label_map = np.zeros((1100, 2000), np.uint8)
    label_map[1000:] = 1
    overlay = drawn(grey(1100, 2000), segmentation(label_map, ("a", "b")))
    for name, rows in (("a", slice(300, 990)), ("b", slice(1010, None))):
        tint = 120 * 140 / 255 + np.array(label_colour(name)) * 115 / 255
        assert np.abs(overlay[rows] - tint).max() <= 1


def test_segments_without_masks_have_a_panel() -> None:
    """Without masks only the panel is drawn."""
    image = grey(400, 600)
    result = segmentation(np.ones((400, 600), np.uint8), ("a", "b"))
    bare = dataclasses.replace(result, segments=tuple(dataclasses.replace(one, mask=None) for one in result.segments))
    overlay = drawn(image, bare)
    assert changed(image, overlay)[:40, :60].any()
    assert not changed(image, overlay)[200:].any()


def test_many_classes_are_tinted() -> None:
    """More classes than a palette holds, with indices above 255, have their own colours."""
    label_map = np.arange(300, dtype=np.uint16).repeat(400).reshape(300, 400)
    label_map = np.kron(label_map[:, :4], np.ones((9, 9), np.uint16))
    overlay = drawn(grey(2700, 36), segmentation(label_map, [str(index) for index in range(300)]))
    for index in (200, 254, 255, 256, 299):
        tint = 120 * 140 / 255 + np.array(label_colour(str(index))) * 115 / 255
        assert np.abs(overlay[index * 9 + 5, 30] - tint).max() <= 1, index


def test_lines_grow_with_the_image() -> None:
    """Outlines are wider in larger images."""
    widths = []
    for side in (200, 2000):
        image = grey(side, side)
        box = Box(side / 4, side / 4, side / 2, side / 2)
        row = changed(image, drawn(image, detections(side, side, detection(box))))[round(side * 0.4)]
        widths.append(row[: round(side * 0.37)].sum())
    assert widths[1] >= 3 * widths[0]


def test_a_label_has_one_colour() -> None:
    """Whatever its case, its index, and the task; few pairs of a model's labels are alike."""
    assert label_colour("Cat") == label_colour("cat") != label_colour("dog")
    box = detection(Box(100, 100, 200, 200), index=1)
    for index in (1, 200):
        found = detections(400, 600, dataclasses.replace(box, index=index))
        parts = segmentation(np.full((400, 600), index, np.uint8), ["x"] * index + ["Cat"])
        assert tuple(drawn(grey(400, 600), found)[150, 100]) == label_colour("cat")
        tint = 120 * 140 / 255 + np.array(label_colour("cat")) * 115 / 255
        assert np.abs(drawn(grey(400, 600), parts)[300, 300] - tint).max() <= 1
    colours = [np.array(label_colour(f"class {index}")) for index in range(20)]
    distances = [int(np.abs(one - other).sum()) for one, other in itertools.combinations(colours, 2)]
    assert np.quantile(distances, 0.05) > 60


def test_an_image_of_another_size_is_an_error() -> None:
    """Drawing on an image of another size raises ValueError."""
    for result in (classification(60, 80), detections(60, 80), segmentation(np.ones((60, 80), np.uint8), "ab")):
        with pytest.raises(ValueError, match="the image is 60 x 80, expected 80 x 60"):
            result.draw(grey(80, 60))
