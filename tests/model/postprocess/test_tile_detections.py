from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from model.postprocess.masks import paste_mask
from model.postprocess.tile_detections import join_detections
from model.spec import DetectPostSpec
from model.tiles import Window
from model.types import Box, DetectOutput, QueryParams, Size, SoftMask

SPEC = DetectPostSpec(nms_iou=0.5)
LEFT, RIGHT = Window(0, 0, 100, 100), Window(0, 80, 100, 100)
"""Two windows of a picture of 180 x 100 that share 20 columns."""
WHOLE = Window(0, 0, 100, 180)
NO_MASKS = QueryParams(masks=False)

Found = tuple[tuple[float, float, float, float], float, int]
"""A box in pixels of the picture, its score, its class."""


def join(
    windows: Sequence[tuple[Window, Sequence[Found]]], params: QueryParams = NO_MASKS, mask: float | None = None
) -> DetectOutput:
    """What windows found, joined. `mask`: the logit of all of their masks."""
    outputs = []
    for window, found in windows:
        boxes = np.array([box for box, _, _ in found], np.float32).reshape(-1, 4)
        boxes -= (window.left, window.top, window.left, window.top)
        outputs.append(
            DetectOutput(
                boxes,
                np.array([score for _, score, _ in found], np.float32),
                np.array([index for _, _, index in found], np.int64),
                None if mask is None else np.full((len(found), 28, 28), mask, np.float32),
            )
        )
    return join_detections(outputs, [window for window, _ in windows], params, SPEC)


def test_an_object_that_a_seam_cuts_is_one_box() -> None:
    """Each window shows a part, up to its own edge; together they are the object, with the better score."""
    joined = join(((LEFT, [((40, 20, 100, 60), 0.7, 0)]), (RIGHT, [((80, 20, 150, 61), 0.9, 0)])))
    assert joined.boxes.tolist() == [[40, 20, 150, 61]]
    assert joined.scores.tolist() == pytest.approx([0.9])


def test_an_object_that_two_windows_show_is_the_better_box() -> None:
    """Both see all of it, so nothing is added to the better one."""
    joined = join(((LEFT, [((82, 20, 97, 60), 0.9, 0)]), (RIGHT, [((81, 18, 98, 64), 0.7, 0)])))
    assert joined.boxes.tolist() == [[82, 20, 97, 60]]


def test_a_chain_of_windows_joins_a_long_object() -> None:
    """Neighbours agree two by two; the first and the last window share nothing."""
    windows = [Window(0, left, 100, 100) for left in (0, 80, 160)]
    parts = [((30, 40, 100, 60), 0.9, 0), ((80, 40, 180, 60), 0.8, 0), ((160, 40, 230, 60), 0.7, 0)]
    joined = join([(window, [part]) for window, part in zip(windows, parts, strict=True)])
    assert joined.boxes.tolist() == [[30, 40, 230, 60]]


def test_neighbours_stay_apart() -> None:
    """What one window shows as two objects is two objects, also where both agree with a box of the other window."""
    two = [((70, 10, 98, 50), 0.9, 0), ((84, 10, 100, 50), 0.8, 0)]
    joined = join(((LEFT, two), (RIGHT, [((84, 10, 112, 50), 0.7, 0)])))
    assert joined.boxes.tolist() == [[70, 10, 98, 50], [84, 10, 112, 50]]


def test_a_small_object_in_front_of_a_large_one_stays() -> None:
    """It is no part of the large box, though it lies within it: its window shows all of it."""
    joined = join(((WHOLE, [((10, 5, 170, 95), 0.9, 0)]), (LEFT, [((30, 30, 50, 50), 0.8, 0)])))
    assert len(joined.scores) == 2


@pytest.mark.parametrize("score", [0.6, 0.99])
def test_a_cut_part_of_a_larger_object_is_no_object(score: float) -> None:
    """A box at its window's edge within a larger box is dropped, also if the part has the better score."""
    joined = join(((WHOLE, [((10, 5, 170, 95), 0.9, 0)]), (LEFT, [((60, 60, 100, 90), score, 0)])))
    assert joined.boxes.tolist() == [[10, 5, 170, 95]]


def test_an_edge_of_the_picture_cuts_nothing() -> None:
    """A box at the picture's own edge is whole."""
    joined = join(((WHOLE, [((0, 5, 170, 95), 0.9, 0)]), (LEFT, [((0, 60, 40, 90), 0.8, 0)])))
    assert len(joined.scores) == 2


def test_classes_stay_apart_unless_the_request_joins_them() -> None:
    """Joining and NMS work within a class; with `agnostic_nms` over all, and the best one names the object."""
    parts = ((LEFT, [((40, 20, 100, 60), 0.7, 0)]), (RIGHT, [((80, 20, 150, 60), 0.9, 1)]))
    assert join(parts).classes.tolist() == [1, 0]
    joined = join(parts, QueryParams(masks=False, agnostic_nms=True))
    assert joined.classes.tolist() == [1]
    assert joined.boxes.tolist() == [[40, 20, 150, 60]]


def test_areas_and_numbers_count_after_joining() -> None:
    """An object whose parts are each too small is large enough; the best are returned, by falling score."""
    windows = (
        (LEFT, [((40, 20, 100, 60), 0.7, 0), ((5, 5, 15, 15), 0.95, 0), ((5, 70, 95, 99), 0.6, 0)]),
        (RIGHT, [((80, 20, 150, 60), 0.9, 0)]),
    )
    joined = join(windows, QueryParams(masks=False, min_area=2500))
    assert joined.boxes.tolist() == [[40, 20, 150, 60], [5, 70, 95, 99]]
    assert join(windows, QueryParams(masks=False, max_detections=1)).scores.tolist() == pytest.approx([0.95])


def test_the_requests_overlap_is_the_limit_of_nms() -> None:
    """Joined boxes are compared by the request's `iou_threshold`, or else by the model's."""
    both: list[tuple[Window, list[Found]]] = [
        (LEFT, [((10, 10, 60, 60), 0.9, 0), ((10, 10, 60, 40), 0.8, 0)]),
        (RIGHT, []),
    ]
    assert len(join(both).scores) == 1
    assert len(join(both, QueryParams(masks=False, iou_threshold=0.7)).scores) == 2


def test_a_joined_mask_is_the_union() -> None:
    """A pixel is in the mask if it is in that of a part; a mask that is joined with none is unchanged."""
    object_ = join(
        ((LEFT, [((40, 20, 100, 60), 0.7, 0), ((5, 70, 35, 95), 0.6, 0)]), (RIGHT, [((80, 20, 160, 60), 0.9, 0)])),
        QueryParams(),
        mask=3.0,
    )
    assert object_.mask_logits is not None
    assert object_.mask_logits.shape == (2, 28, 28)
    assert (object_.mask_logits[1] == 3.0).all()
    box = Box(*object_.boxes[0].tolist())
    pasted = paste_mask(SoftMask(object_.mask_logits[0], 0.5), box, Size(100, 180)).full_mask()
    inner = pasted[22:58, 43:157]
    assert inner.all()
    assert pasted.sum() <= 120 * 40 * 1.05


def test_nothing_found_is_nothing() -> None:
    """Windows without detections are an empty answer, with masks where they are asked for."""
    joined = join(((LEFT, []), (RIGHT, [])), QueryParams(), mask=0.0)
    assert joined.boxes.shape == (0, 4)
    assert joined.mask_logits is not None
    assert joined.mask_logits.shape == (0, 28, 28)


def test_work_is_bounded_whatever_is_found() -> None:
    """Of thousands of boxes, as without NMS, the best are compared, and at most `max_detections` are returned."""
    random = np.random.default_rng(1)
    windows = [Window(top, left, 100, 100) for top in range(0, 560, 80) for left in range(0, 560, 80)]
    found = []
    for window in windows:
        corners = random.uniform(10, 50, (120, 2)) + np.array((window.left, window.top))
        boxes = np.concatenate((corners, corners + random.uniform(5, 40, (120, 2))), axis=1)
        scores = random.uniform(0.1, 1, 120)
        found.append(
            (
                window,
                [
                    ((x, y, right, low), score, 0)
                    for (x, y, right, low), score in zip(boxes.tolist(), scores.tolist(), strict=True)
                ],
            )
        )
    joined = join(found, QueryParams(masks=False, iou_threshold=1.0, max_detections=500))
    assert len(joined.scores) == 500
    assert (np.diff(joined.scores) <= 0).all()


def test_joining_ends_where_nobody_waits() -> None:
    """Before the boxes of each window there is a question whether to go on."""
    empty = DetectOutput(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), None)

    def before_each() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        join_detections([empty, empty], [LEFT, RIGHT], NO_MASKS, SPEC, before_each)
