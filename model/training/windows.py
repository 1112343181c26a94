"""The geometry of training examples: which part of a picture is shown, and what becomes of pixels and boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from model.spec import Normalisation
from model.types import Box, Size, UInt8Array

Float64Array = npt.NDArray[np.float64]

MEAN_COLOUR = tuple(round(value) for value in Normalisation().mean)
"""Fills what lies beyond a picture: zero after normalisation, like the padding at test time."""


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of a picture, in its pixels, that is stretched over `out`; it may reach beyond the picture."""

    box: Box
    out: Size
    flip: bool

    def affine(self) -> Float64Array:
        """The 2 x 3 matrix from picture to output coordinates (pixel corners, not centres)."""
        scale_x = self.out.width / (self.box.xmax - self.box.xmin)
        scale_y = self.out.height / (self.box.ymax - self.box.ymin)
        shift_x = -scale_x * self.box.xmin
        if self.flip:
            scale_x, shift_x = -scale_x, scale_x * self.box.xmax
        return np.array([[scale_x, 0, shift_x], [0, scale_y, -scale_y * self.box.ymin]], np.float64)

    def _centre_affine(self) -> Float64Array:
        """`affine` between pixel centres, which is how OpenCV counts."""
        matrix = self.affine()
        matrix[:, 2] += 0.5 * matrix[:, :2].sum(axis=1) - 0.5
        return matrix

    def apply(self, picture: UInt8Array) -> UInt8Array:
        """Cut the window out of (H, W, 3) pixels, bilinear; the mean colour where it reaches beyond them."""
        matrix = self._centre_affine()
        if min(abs(matrix[0, 0]), matrix[1, 1]) < 0.5:
            # Bilinear sampling alone would alias here.
            small = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            half = Box(*(side / 2 for side in (self.box.xmin, self.box.ymin, self.box.xmax, self.box.ymax)))
            return Window(half, self.out, self.flip).apply(small.astype(np.uint8))
        return self._warp(picture, matrix, cv2.INTER_LINEAR, MEAN_COLOUR)

    def apply_to_mask(self, mask: UInt8Array, fill: int) -> UInt8Array:
        """The same of (H, W) values, nearest neighbour; `fill` where it reaches beyond them."""
        matrix = self._centre_affine()
        return self._warp(mask, matrix, cv2.INTER_NEAREST, (fill,))

    def _warp(self, pixels: UInt8Array, matrix: Float64Array, mode: int, fill: tuple[int, ...]) -> UInt8Array:
        size = (self.out.width, self.out.height)
        warped = cv2.warpAffine(pixels, matrix, size, flags=mode, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
        return warped.astype(np.uint8)

    def move(self, box: Box) -> Box:
        """The box in output coordinates, clipped to the output; empty (no area) where it lies outside."""
        (scale_x, _, shift_x), (_, scale_y, shift_y) = self.affine().tolist()
        xs = sorted(min(max(scale_x * x + shift_x, 0.0), self.out.width) for x in (box.xmin, box.xmax))
        ys = sorted(min(max(scale_y * y + shift_y, 0.0), self.out.height) for y in (box.ymin, box.ymax))
        return Box(xs[0], ys[0], xs[1], ys[1])


def side_at(sizes: Sequence[tuple[float, int]], progress: float) -> int:
    """The last of (share of the training from which it applies, side) that applies: small and cheap comes first."""
    return [side for start, side in sizes if start <= progress][-1]


def area(box: Box) -> float:
    return max(box.xmax - box.xmin, 0.0) * max(box.ymax - box.ymin, 0.0)


def visible_share(window: Box, box: Box) -> float:
    """The share of `box` that lies within `window`."""
    shared = Box(
        max(window.xmin, box.xmin),
        max(window.ymin, box.ymin),
        min(window.xmax, box.xmax),
        min(window.ymax, box.ymax),
    )
    if shared.xmax <= shared.xmin:
        return 0.0
    return area(shared) / area(box)


def random_resized_crop(
    rng: np.random.Generator,
    picture: Size,
    out: Size,
    scale: tuple[float, float],
    keep: Box | None,
    least_visible: float,
    attempts: int = 10,
) -> Window:
    """A window of a random share `scale` of the picture and an aspect from 3/4 to 4/3.

    A window that shows less than `least_visible` of `keep` is drawn again: a crop without the head says little
    about the breed. After `attempts` draws the whole picture is taken.
    """
    flip = bool(rng.random() < 0.5)
    for _ in range(attempts):
        share = rng.uniform(*scale) * picture.height * picture.width
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))) * out.width / out.height
        width, height = math.sqrt(share * aspect), math.sqrt(share / aspect)
        if width > picture.width or height > picture.height:
            continue
        x, y = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
        box = Box(x, y, x + width, y + height)
        if keep is None or visible_share(box, keep) >= least_visible:
            return Window(box, out, flip)
    return Window(Box(0, 0, picture.width, picture.height), out, flip)


def random_frame(
    rng: np.random.Generator, picture: Size, out: Size, zoom: tuple[float, float], keep: Box | None
) -> Window:
    """A window for dense tasks: `zoom` times as large as the picture's shorter side, anywhere it shows something.

    Its aspect is that of `out`, give or take a tenth. It may reach beyond the picture. Of `keep` it shows at
    least two thirds where ten draws find such a window.
    """
    shorter = min(picture.height, picture.width)
    box = Box(0, 0, picture.width, picture.height)
    for _ in range(10):
        stretch = math.exp(rng.uniform(-0.1, 0.1) / 2)
        side = shorter * math.exp(rng.uniform(math.log(zoom[0]), math.log(zoom[1])))
        width, height = side * stretch * out.width / out.height, side / stretch
        # A window larger than the picture slides over it by the difference, as a smaller one does within it.
        x, y = (
            rng.uniform(min(slack, 0.0), max(slack, 0.0)) for slack in (picture.width - width, picture.height - height)
        )
        box = Box(x, y, x + width, y + height)
        if keep is None or visible_share(box, keep) >= 2 / 3:
            break
    return Window(box, out, bool(rng.random() < 0.5))


def whole_picture(size: Size, side: int) -> Window:
    """The square about the whole picture, its top left corner in place, as `side` x `side` pixels."""
    longer = max(size.height, size.width)
    return Window(Box(0, 0, longer, longer), Size(side, side), flip=False)


def central_square(size: Size, share: float, side: int) -> Window:
    """The central square of `share` of the shorter side, as `side` x `side` pixels."""
    half = min(size.height, size.width) * share / 2
    x, y = size.width / 2, size.height / 2
    return Window(Box(x - half, y - half, x + half, y + half), Size(side, side), flip=False)
