"""Polygons of masks: the outline of each connected part as one ring, its holes cut open by seams.

An outline runs along the edges of pixels, in the frame of the boxes: pixel (column, row) spans column to column + 1 and
row to row + 1, so a single pixel is a square. Pixels that touch only at a corner belong to different parts, and holes
that touch only at a corner are one hole. So no ring crosses itself, and rings of a mask do not cross.

A hole is joined to what encloses it by a seam: two coincident sides, there and back, which enclose nothing. The seam
runs from the hole's leftmost edge to the left, within the mask, up to the next edge. That edge belongs to the outline
or to a hole that reaches further left, so seams form no cycle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from model.types import BoolArray, IntArray, LabelMapArray

Polygons = list[list[int]]

STRIP_PIXELS = 1 << 18
"""Neighbours are compared for so many pixels at a time, to fit in a core's cache."""

NORTH_WEST, NORTH_EAST, SOUTH_WEST, SOUTH_EAST = 1, 2, 4, 8
"""The four pixels around a corner of the pixel grid, as bits: which of them belong to the mask."""


def _corner_table() -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8]]:
    """By bits: how many corners of outlines lie there; and for each, whether the mask is east and south of it.

    The sides are int8 (2, 16, 2): corner, bits, and 0 or 1 for (east, south). Where two pixels touch diagonally there
    are two corners, the western one first.
    """
    numbers, sides = np.zeros(16, np.int8), np.zeros((2, 16, 2), np.int8)
    pixels = {NORTH_WEST: (0, 0), NORTH_EAST: (1, 0), SOUTH_WEST: (0, 1), SOUTH_EAST: (1, 1)}
    for bit, (east, south) in pixels.items():
        # One pixel of the mask: it is on the mask's side of both edges. One pixel outside: the opposite.
        numbers[bit] = numbers[15 - bit] = 1
        sides[0, bit] = (east, south)
        sides[0, 15 - bit] = (1 - east, 1 - south)
    for west, east in ((NORTH_WEST, SOUTH_EAST), (SOUTH_WEST, NORTH_EAST)):
        numbers[west | east] = 2
        sides[:, west | east] = (pixels[west], pixels[east])
    return numbers, sides


CORNERS, SIDES = _corner_table()


def trace_polygons(
    labels: LabelMapArray | BoolArray, values: Sequence[int], left: int = 0, top: int = 0, *, holes: bool = True
) -> Iterator[Polygons]:
    """For each value the polygons, [x0, y0, x1, y1, ...], of its pixels in `labels`, (H, W), moved by (left, top).

    Without `holes` they are filled: a polygon is the outline alone, and parts within it have their own. The points are
    at most four for each pixel and three for each hole.
    """
    height, width = labels.shape
    if not labels.size:
        yield from ([] for _ in values)
        return
    around = _pixels_around_corners(labels)
    corners = (height + 1) * (width + 1)
    for value in values:
        first, stop = np.searchsorted(around, (value * corners * 4, (value + 1) * corners * 4))
        corner, pixel = np.divmod(around[first:stop] - value * corners * 4, 4)
        starts = np.flatnonzero(np.diff(corner, prepend=-1))
        bits = np.add.reduceat(1 << pixel, starts) if len(starts) else pixel
        yield _outlines(corner[starts], bits, width + 1, np.array((left, top)), holes)


def outer_outlines(mask: BoolArray, left: int = 0, top: int = 0) -> Iterator[IntArray]:
    """The outlines of a mask's connected parts, int64 (n, 2) of (x, y), by falling area of what they enclose.

    Holes are filled, so a part in a hole has no outline. The mask's pixels are on the right of each side.
    """
    (polygons,) = trace_polygons(mask, [True], left, top, holes=False)
    outlines = [np.array(polygon, np.int64).reshape(-1, 2) for polygon in polygons]
    outlines.sort(key=enclosed_area, reverse=True)
    larger: list[IntArray] = []
    for outline in outlines:
        # Its first point is the upper one of its leftmost side: right below it is a pixel of the part.
        if not any(_encloses(other, outline[0]) for other in larger):
            larger.append(outline)
            yield outline


def enclosed_area(outline: IntArray) -> int:
    """In pixels, of an outline of `outer_outlines`."""
    x, y = outline.T
    return abs(int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))) // 2


def pixels_along(outline: IntArray) -> IntArray:
    """The pixels along the inner side of an outline of `outer_outlines`: int64 (n, 2) of (x, y), where they turn."""
    step = np.sign(np.roll(outline, -1, axis=0) - outline)
    # The pixel right of a side's first point, as seen along the side, and of its last one.
    right = np.minimum(step, 0) + np.stack((np.minimum(-step[:, 1], 0), np.minimum(step[:, 0], 0)), axis=1)
    first = outline + right
    last = np.roll(outline, -1, axis=0) - step + right
    pixels = np.stack((first, last), axis=1).reshape(-1, 2)
    new = (pixels != np.roll(pixels, 1, axis=0)).any(axis=1)
    if not new.any():
        return pixels[:1]
    pixels = pixels[new]
    # Steps are along an axis, or one pixel along both.
    steps = np.sign(np.roll(pixels, -1, axis=0) - pixels)
    turns: IntArray = pixels[(steps != np.roll(steps, 1, axis=0)).any(axis=1)]
    return turns


def simplified(outline: IntArray, tolerance: float) -> IntArray:
    """The points of a closed outline, int64 (n, 2), without those that are within `tolerance` of what is left.

    D. Douglas and T. Peucker, Cartographica 10(2), 1973, for both parts between the first point and the farthest one.
    """
    closed = np.append(outline, outline[:1], axis=0).astype(np.float64)
    farthest = int(np.square(closed - closed[0]).sum(axis=1).argmax())
    kept = np.zeros(len(outline), np.bool_)
    kept[[0, farthest]] = True
    parts = [(0, farthest), (farthest, len(outline))]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        offsets, chord = closed[first + 1 : last] - closed[first], closed[last] - closed[first]
        length = float(np.hypot(*chord))
        if length:
            distances = np.abs(offsets[:, 0] * chord[1] - offsets[:, 1] * chord[0]) / length
        else:
            distances = np.hypot(*offsets.T)
        middle = int(distances.argmax())
        if distances[middle] > tolerance:
            kept[first + 1 + middle] = True
            parts += ((first, first + 1 + middle), (first + 1 + middle, last))
    return outline[kept]


def _encloses(outline: IntArray, pixel: IntArray) -> bool:
    """Whether an odd number of its vertical sides are left of the pixel (x, y)'s centre."""
    x, y = outline.T
    next_y = np.roll(y, -1)
    beside = (np.minimum(y, next_y) <= pixel[1]) & (pixel[1] < np.maximum(y, next_y))
    return bool(np.count_nonzero(beside & (x <= pixel[0])) % 2)


def _pixels_around_corners(labels: LabelMapArray | BoolArray) -> IntArray:
    """The pixels around those corners of the grid that have several values around them, outside of the map included.

    A pixel is written as (value * number of corners + corner) * 4 + its place around the corner; they rise. Corner
    y * (width + 1) + x is the top left corner of pixel (y, x); the four places are in the order of the bits.
    """
    height, width = labels.shape
    mixed = np.ones((height + 1, width + 1), np.bool_)
    step = max(STRIP_PIXELS // width, 1)
    for first in range(0, height - 1, step):
        rows = labels[first : first + step + 1]
        corner, strip = rows[:-1, :-1], mixed[first + 1 : first + len(rows), 1:-1]
        np.not_equal(rows[1:, 1:], corner, out=strip)
        strip |= rows[:-1, 1:] != corner
        strip |= rows[1:, :-1] != corner
    corners = np.flatnonzero(mixed)
    row, column = np.divmod(corners, width + 1)
    places = []
    for place, (above, before) in enumerate(((1, 1), (1, 0), (0, 1), (0, 0))):
        y, x = row - above, column - before
        inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        value = labels[y[inside], x[inside]].astype(np.int64)
        places.append((value * mixed.size + corners[inside]) * 4 + place)
    around = np.concatenate(places)
    around.sort()
    return around


def _outlines(corner: IntArray, bits: IntArray, stride: int, origin: IntArray, with_holes: bool) -> Polygons:
    """The polygons of a mask. `corner` = y * stride + x rises, where `bits` of the pixels around are set."""
    number = CORNERS[bits]
    second = np.zeros(number.sum(), np.int8)
    second[(np.cumsum(number) - 1)[number == 2]] = 1
    place = np.repeat(np.arange(len(corner)), number)
    east, south = SIDES[second, bits[place]].T.astype(np.bool_)
    y, x = np.divmod(corner[place], stride)

    # Each corner has one horizontal and one vertical edge. So neighbours in a row form pairs, joined by an edge, and so
    # do neighbours in a column. Edges are directed with the mask on their right.
    successor = np.empty(len(x), np.int64)
    first = np.arange(0, len(x), 2)
    successor[first + ~south[first]] = first + south[first]
    by_column = np.lexsort((south, y, x))
    upper, lower = by_column[::2], by_column[1::2]
    successor[np.where(east[upper], lower, upper)] = np.where(east[upper], upper, lower)
    links: list[int] = successor.tolist()
    starts, ends = _rings(links, by_column.tolist())

    # A ring starts on its leftmost edge. If the mask is west of that edge, the ring encloses a hole.
    encloses_hole = ~east[starts]
    if not with_holes:
        return _points(links, starts[~encloses_hole].tolist(), np.stack((x, y), axis=1) + origin)
    holes, hole_ends = starts[encloses_hole], ends[encloses_hole]
    order = np.argsort(y[holes], kind="stable")
    holes, hole_ends = holes[order], hole_ends[order]
    # The seam runs along the lowest pixels above the hole's first corner, to the start of their run.
    run_starts = corner[(bits & (SOUTH_WEST | SOUTH_EAST)) == SOUTH_EAST]
    row = y[holes] - 1
    seam_x = run_starts[np.searchsorted(run_starts, row * stride + x[holes]) - 1] - row * stride
    rows = int(y.max(initial=0)) + 1
    edge = np.searchsorted(x[upper] * rows + y[upper], seam_x * rows + row, side="right") - 1
    # That edge is directed upwards. Holes come by rising y, so the lowest seam is linked last and comes first.
    for hole, end, behind in zip(holes.tolist(), hole_ends.tolist(), lower[edge].tolist(), strict=True):
        there = len(links)
        links += (hole, there + 2, links[behind])
        links[behind] = there
        links[end] = there + 1
    x = np.concatenate((x, np.stack((seam_x, x[holes], seam_x), axis=1).ravel()))
    y = np.concatenate((y, np.repeat(y[holes], 3)))
    return _points(links, starts[~encloses_hole].tolist(), np.stack((x, y), axis=1) + origin)


def _rings(links: list[int], corners: list[int]) -> tuple[IntArray, IntArray]:
    """The first corner of each ring, in the order of `corners`, and the corner before it."""
    starts, ends = [], []
    seen = bytearray(len(links))
    for start in corners:
        if not seen[start]:
            corner = end = start
            while not seen[corner]:
                seen[corner] = 1
                end, corner = corner, links[corner]
            starts.append(start)
            ends.append(end)
    return np.array(starts, np.int64), np.array(ends, np.int64)


def _points(links: list[int], starts: list[int], points: IntArray) -> Polygons:
    """The rings that begin at `starts`, as the coordinates of their points, int (n, 2), without repetitions."""
    corners: list[int] = []
    stops = []
    for start in starts:
        corners.append(start)
        corner = links[start]
        while corner != start:
            corners.append(corner)
            corner = links[corner]
        stops.append(len(corners))
    ordered = points[corners]
    # A seam may end at a corner, or where another one ends. A ring's last point is never its first.
    new = np.ones(len(ordered), np.bool_)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    new[stops[:-1]] = True
    coordinates: list[int] = ordered[new].ravel().tolist()
    bounds = (2 * np.cumsum(new)[np.array(stops, np.int64) - 1]).tolist()
    return [coordinates[first:stop] for first, stop in zip([0, *bounds], bounds, strict=False)]
