"""Detections of a picture's windows → those of the picture: duplicates and cut objects are joined over the seams.

Two windows see the same pixels where they overlap. Two boxes show one object if they agree there, within that overlap
alone, and if one that reaches beyond the other's window is continued: the other box reaches to that window's edge. So
objects that a window shows whole, or as two, are never joined. A joined box
takes each of its sides from the best-scored box whose window contains that side of the object. A box that remains cut
off by its window's edge, and lies mostly within a larger box, is a part of that object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from model.spec import DetectPostSpec
from model.tiles import Window
from model.types import BoolArray, DetectOutput, Float32Array, IntArray, QueryParams

MIN_AGREEMENT = 0.3
"""Intersection over union of two boxes of one object, within the overlap of their windows."""
EDGE_MARGIN = 0.2
"""Of the smaller box's side: nearer to a window's edge than this a box reaches to it."""
MIN_INSIDE = 0.5
"""Share of a cut box's area that lies within a larger one."""
MIN_SCORE = 0.5
"""Of the larger box, as a part of the cut one's: the score of a part is no measure of the whole."""
CUT_MARGIN = 0.02
"""A box is cut if it is nearer to its window's edge than this part of the window's side."""
MAX_CANDIDATES = 4000
"""Boxes that are compared: the best-scored ones of all windows."""
MIN_OVERLAP = 1.0
"""Of boxes within the overlap of their windows, in pixels along each axis: less is no evidence."""


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Boxes of all windows by falling score, in pixels of the picture. `source` is the window that each is from, `row`
    its row there. `windows` are float32 (windows, 4) as xmin, ymin, xmax, ymax."""

    corners: Float32Array
    scores: Float32Array
    classes: IntArray
    source: IntArray
    row: IntArray
    windows: Float32Array


def join_detections(
    outputs: Sequence[DetectOutput],
    windows: Sequence[Window],
    params: QueryParams,
    spec: DetectPostSpec,
    before_each: Callable[[], None] = lambda: None,
) -> DetectOutput:
    """The detections of a picture, by falling score.

    Args:
        outputs: of each window, in its own pixels.
        windows: in the same order. One may be the whole picture.
        params: of the request: areas and numbers count after joining.
        spec: of the model.
        before_each: called before the boxes of each window are compared; what it raises ends the work.
    """
    boxes = _gather(outputs, windows)
    groups = _groups(boxes, before_each, agnostic=params.agnostic_nms)
    corners = np.array([_joined_box(boxes, group) for group in groups], np.float32).reshape(-1, 4)
    first = np.array([group[0] for group in groups], np.int64)
    scores, classes = boxes.scores[first], boxes.classes[first]
    kind = np.zeros_like(classes) if params.agnostic_nms else classes
    limit = spec.nms_iou if params.iou_threshold is None else params.iou_threshold
    whole = np.flatnonzero(_without_parts(corners, scores, kind, _are_cut(boxes, groups, corners)))
    large = _areas(corners[whole]) >= params.min_area
    kept = whole[_suppress(corners[whole], kind[whole], large, limit, params.max_detections)]
    masks = None
    logits = [output.mask_logits for output in outputs if output.mask_logits is not None]
    if len(logits) == len(outputs):
        joined = [_joined_mask(logits, boxes, groups[index], corners[index]) for index in kept]
        masks = np.stack(joined) if joined else logits[0][:0]
    return DetectOutput(corners[kept], scores[kept], classes[kept], masks)


def _gather(outputs: Sequence[DetectOutput], windows: Sequence[Window]) -> _Boxes:
    offsets = np.array([(one.left, one.top, one.left, one.top) for one in windows], np.float32)
    sizes = np.array([(0, 0, one.width, one.height) for one in windows], np.float32)
    counts = [len(output.scores) for output in outputs]
    source = np.repeat(np.arange(len(outputs)), counts)
    scores = np.concatenate([output.scores for output in outputs])
    best = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    corners = np.concatenate([output.boxes for output in outputs]).reshape(-1, 4)
    return _Boxes(
        (corners + offsets[source])[best],
        scores[best],
        np.concatenate([output.classes for output in outputs])[best],
        source[best],
        np.concatenate([np.arange(count) for count in counts])[best],
        offsets + sizes,
    )


def _groups(boxes: _Boxes, before_each: Callable[[], None], *, agnostic: bool) -> list[list[int]]:
    """The boxes of each object, the best first; the objects by falling score of their best.

    Pairs that agree best are joined first. Two groups are joined if all their boxes agree whose windows are compared.
    """
    compared = _compared(boxes.windows)
    pairs, agree = _agreeing_pairs(boxes, compared, before_each, agnostic=agnostic)
    group_of = list(range(len(boxes.scores)))
    members = [[index] for index in group_of]
    for one, other in pairs.tolist():
        first, second = sorted((group_of[one], group_of[other]))
        if first == second:
            continue
        mine, others = members[first], members[second]
        if (agree[np.ix_(mine, others)] | ~compared[np.ix_(boxes.source[mine], boxes.source[others])]).all():
            for index in others:
                group_of[index] = first
            members[first] = mine + others
            members[second] = []
    return [sorted(group) for group in members if group]


def _compared(windows: Float32Array) -> BoolArray:
    """Which windows are compared: each with itself, with its neighbours in the grid, and with the whole picture. What
    others share is a rim, in which boxes that lie beside each other agree by chance. bool (n, n)."""
    ranks = np.stack([np.unique(windows[:, axis], return_inverse=True)[1] for axis in (0, 1)], axis=1)
    near: BoolArray = (np.abs(ranks[:, None] - ranks[None]) <= 1).all(axis=2)
    sizes = windows[:, 2:] - windows[:, :2]
    near |= (sizes[:, None] != sizes[None]).any(axis=2)
    return near & (intersections(windows, windows) > 0)


def _agreeing_pairs(
    boxes: _Boxes, compared: BoolArray, before_each: Callable[[], None], *, agnostic: bool
) -> tuple[IntArray, BoolArray]:
    """Pairs of boxes of two windows that show the same object, the best first.

    Returns:
        Indices (n, 2) of the pairs in which each agrees best with the other, of all in the other's window; and which
        boxes agree at all, bool (boxes, boxes).
    """
    count = len(boxes.scores)
    agree = np.zeros((count, count), np.bool_)
    pairs, agreements = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    of_window = [np.flatnonzero(boxes.source == window) for window in range(len(boxes.windows))]
    for one, mine in enumerate(of_window):
        before_each()
        for other in one + 1 + np.flatnonzero(compared[one, one + 1 :]):
            low = np.maximum(boxes.windows[one, :2], boxes.windows[other, :2])
            overlap = np.concatenate((low, np.minimum(boxes.windows[one, 2:], boxes.windows[other, 2:])))
            # Of the boxes only those that the overlap shows.
            first, second = (_shown(boxes, chosen, overlap) for chosen in (mine, of_window[other]))
            if not len(first) or not len(second):
                continue
            agreement = overlaps(_clipped(boxes.corners[first], overlap), _clipped(boxes.corners[second], overlap))
            same = (agreement >= MIN_AGREEMENT) & _continue_each_other(boxes, first, second, one, int(other))
            if not agnostic:
                same &= boxes.classes[first][:, None] == boxes.classes[second]
            agree[np.ix_(first, second)] = same
            agree[np.ix_(second, first)] = same.T
            agreement[~same] = 0
            columns = agreement.argmax(axis=1)
            rows = np.flatnonzero(agreement[np.arange(len(first)), columns] > 0)
            rows = rows[agreement.argmax(axis=0)[columns[rows]] == rows]
            pairs.append(np.stack((first[rows], second[columns[rows]]), axis=1))
            agreements.append(agreement[rows, columns[rows]])
    return np.concatenate(pairs)[np.argsort(-np.concatenate(agreements), kind="stable")], agree


def _continue_each_other(boxes: _Boxes, first: IntArray, second: IntArray, one: int, other: int) -> BoolArray:
    """Where a box reaches beyond the other's window, whether the other box reaches to that window's edge: bool (n, m).

    Boxes `first` are of window `one`, and `second` of window `other`.
    """
    mine, others = boxes.corners[first][:, None], boxes.corners[second][None]
    lengths = np.minimum(mine[..., 2:] - mine[..., :2], others[..., 2:] - others[..., :2])
    margins = np.tile(EDGE_MARGIN * lengths, 2)
    # Positive towards the outside, on all four sides.
    outwards = np.array((-1, -1, 1, 1), np.float32)
    mine_beyond = outwards * (mine - boxes.windows[other])
    others_beyond = outwards * (others - boxes.windows[one])
    mine_inside = outwards * (mine - boxes.windows[one])
    others_inside = outwards * (others - boxes.windows[other])
    broken = (mine_beyond > margins) & (others_inside < -margins)
    broken |= (others_beyond > margins) & (mine_inside < -margins)
    continued: BoolArray = ~broken.any(axis=2)
    return continued


def _shown(boxes: _Boxes, chosen: IntArray, overlap: Float32Array) -> IntArray:
    clipped = _clipped(boxes.corners[chosen], overlap)
    return chosen[((clipped[:, 2:] - clipped[:, :2]) >= MIN_OVERLAP).all(axis=1)]


def _clipped(corners: Float32Array, area: Float32Array) -> Float32Array:
    return np.concatenate(
        (np.maximum(corners[:, :2], area[:2]), np.minimum(corners[:, 2:], area[2:])), axis=1, dtype=np.float32
    )


def intersections(boxes: Float32Array, others: Float32Array) -> Float32Array:
    """Areas that boxes (n, 4) and (m, 4) share: (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared: Float32Array = np.maximum(high - low, 0).prod(axis=2)
    return shared


def overlaps(boxes: Float32Array, others: Float32Array) -> Float32Array:
    """Intersection over union of boxes (n, 4) and (m, 4): (n, m). 0 where neither has an area."""
    shared = intersections(boxes, others)
    union = _areas(boxes)[:, None] + _areas(others) - shared
    ratios: Float32Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratios


def _areas(boxes: Float32Array) -> Float32Array:
    areas: Float32Array = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)
    return areas


def _joined_box(boxes: _Boxes, group: Sequence[int]) -> Float32Array:
    """Each side from the best box whose window contains it: no box of the group reaches beyond the window there."""
    corners, windows = boxes.corners[group], boxes.windows[boxes.source[group]]
    lowest, highest = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    low_seen, high_seen = lowest >= windows[:, :2], highest <= windows[:, 2:]
    # The furthest box itself sees its side, so each column has one. The group is by falling score: the first is best.
    low = corners[low_seen.argmax(axis=0), (0, 1)]
    high = corners[high_seen.argmax(axis=0), (2, 3)]
    return np.concatenate((low, high))


def _are_cut(boxes: _Boxes, groups: Sequence[Sequence[int]], corners: Float32Array) -> BoolArray:
    """Of joined boxes: whether one of their sides lies at an edge of each window that shows it, and not at the
    picture's."""
    low, high = boxes.windows[:, :2].min(axis=0), boxes.windows[:, 2:].max(axis=0)
    inner_low, inner_high = boxes.windows[:, :2] > low, boxes.windows[:, 2:] < high
    margins = CUT_MARGIN * (boxes.windows[:, 2:] - boxes.windows[:, :2])
    # Nearer to an edge than this a side is cut, whichever window it is of.
    lowest = np.where(inner_low, boxes.windows[:, :2] + margins, -np.inf)
    highest = np.where(inner_high, boxes.windows[:, 2:] - margins, np.inf)
    cut = np.zeros(len(groups), np.bool_)
    for index, group in enumerate(groups):
        windows = boxes.source[group]
        seen = (corners[index, :2] >= lowest[windows]).any(axis=0) & (corners[index, 2:] <= highest[windows]).any(
            axis=0
        )
        cut[index] = not seen.all()
    return cut


def _without_parts(corners: Float32Array, scores: Float32Array, kind: IntArray, cut: BoolArray) -> BoolArray:
    """Which boxes are not the cut part of a larger one of their kind: bool (n,)."""
    whole = np.ones(len(corners), np.bool_)
    areas = _areas(corners)
    for index in np.flatnonzero(cut):
        larger = (areas > areas[index]) & (kind == kind[index]) & (scores >= MIN_SCORE * scores[index])
        inside = intersections(corners[index : index + 1], corners[larger])[0]
        whole[index] = not (inside >= MIN_INSIDE * areas[index]).any()
    return whole


def _suppress(corners: Float32Array, kind: IntArray, large: BoolArray, limit: float, most: int) -> IntArray:
    """Greedy NMS of boxes by falling score, within each kind: the indices of at most `most` large ones that stay.

    Small boxes suppress others, too: what a better, smaller box suppresses is another box of the same object.
    """
    alive = np.ones(len(corners), np.bool_)
    kept: list[int] = []
    for index in range(len(corners)):
        if not alive[index]:
            continue
        if large[index]:
            kept.append(index)
            if len(kept) == most:
                break
        rest = index + 1 + np.flatnonzero(alive[index + 1 :] & (kind[index + 1 :] == kind[index]))
        alive[rest[overlaps(corners[index : index + 1], corners[rest])[0] > limit]] = False
    return np.array(kept, np.int64)


def _joined_mask(
    logits: Sequence[Float32Array], boxes: _Boxes, group: Sequence[int], corners: Float32Array
) -> Float32Array:
    """The union of the masks of a group on a grid of their own size over the joined box: logits float32 (m, m)."""
    masks = [logits[boxes.source[index]][boxes.row[index]] for index in group]
    if len(masks) == 1:
        alone: Float32Array = masks[0]
        return alone
    side = len(masks[0])
    largest = np.zeros((side, side), np.float32)
    for index, mask in zip(group, masks, strict=True):
        probabilities = 0.5 + 0.5 * np.tanh(0.5 * mask)
        columns = _grid_weights(corners[[0, 2]], boxes.corners[index][[0, 2]], side)
        rows = _grid_weights(corners[[1, 3]], boxes.corners[index][[1, 3]], side)
        np.maximum(largest, rows @ probabilities @ columns.T, out=largest)
    clipped = np.clip(largest, 1e-6, 1 - 1e-6)
    joined: Float32Array = np.log(clipped / (1 - clipped)).astype(np.float32)
    return joined


def _grid_weights(joined: Float32Array, part: Float32Array, side: int) -> Float32Array:
    """Linear interpolation from a box's grid to the joined box's, along an axis: float32 (side, side).

    Beyond the outer cells' centres, and up to the box's edges, the outer cell counts; outside of the box nothing does.
    """
    at = joined[0] + (np.arange(side) + 0.5) * (joined[1] - joined[0]) / side
    length = max(float(part[1] - part[0]), 1e-6)
    position = (at - part[0]) / length * side - 0.5
    inside = (position >= -0.5) & (position <= side - 0.5)
    distance = np.abs(position.clip(0, side - 1)[:, None] - np.arange(side))
    weights: Float32Array = (np.maximum(1 - distance, 0) * inside[:, None]).astype(np.float32)
    return weights
