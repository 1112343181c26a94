"""Augmentation: windows of pictures with their boxes and masks; colour jitter, erasing, mixing of batches.

All randomness comes from the generator in the arguments, so a step's batch depends only on its number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.spec import Normalisation
from model.types import Box, Size, UInt8Array

Float64Array = npt.NDArray[np.float64]

MEAN_COLOUR = tuple(round(value) for value in Normalisation().mean)
"""Fill outside of a picture: zero after normalisation, like the padding at test time."""


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle `box` in pixels of a picture, resized to `out` px; it may extend beyond the picture."""

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
        """`affine` between pixel centres, OpenCV's convention."""
        matrix = self.affine()
        matrix[:, 2] += 0.5 * matrix[:, :2].sum(axis=1) - 0.5
        return matrix

    def apply(self, picture: UInt8Array) -> UInt8Array:
        """The window of uint8 (H, W, 3) pixels, bilinear; the mean colour outside of the picture."""
        matrix = self._centre_affine()
        if min(abs(matrix[0, 0]), matrix[1, 1]) < 0.5:
            # Avoid aliasing: halve the picture first.
            small = cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            half = Box(*(side / 2 for side in (self.box.xmin, self.box.ymin, self.box.xmax, self.box.ymax)))
            return Window(half, self.out, self.flip).apply(small.astype(np.uint8))
        return self._warp(picture, matrix, cv2.INTER_LINEAR, MEAN_COLOUR)

    def apply_to_mask(self, mask: UInt8Array, fill: int) -> UInt8Array:
        """The window of uint8 (H, W) values, nearest neighbour; `fill` outside of the picture."""
        matrix = self._centre_affine()
        return self._warp(mask, matrix, cv2.INTER_NEAREST, (fill,))

    def _warp(self, pixels: UInt8Array, matrix: Float64Array, mode: int, fill: tuple[int, ...]) -> UInt8Array:
        size = (self.out.width, self.out.height)
        warped = cv2.warpAffine(pixels, matrix, size, flags=mode, borderMode=cv2.BORDER_CONSTANT, borderValue=fill)
        return warped.astype(np.uint8)

    def move(self, box: Box) -> Box:
        """A box of the picture in output coordinates, clipped to the output; without area if it is outside."""
        (scale_x, _, shift_x), (_, scale_y, shift_y) = self.affine().tolist()
        xs = sorted(min(max(scale_x * x + shift_x, 0.0), self.out.width) for x in (box.xmin, box.xmax))
        ys = sorted(min(max(scale_y * y + shift_y, 0.0), self.out.height) for y in (box.ymin, box.ymax))
        return Box(xs[0], ys[0], xs[1], ys[1])


def side_at(sizes: Sequence[tuple[float, int]], progress: float) -> int:
    """The input's side at `progress`; `sizes` are (progress from which it applies, side in px), small sides first."""
    return [side for start, side in sizes if start <= progress][-1]


def area(box: Box) -> float:
    """A box's area, 0 if it is inverted."""
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
    min_visible: float,
    attempts: int = 10,
) -> Window:
    """A window of a random share of the picture's area, within `scale`, and an aspect ratio of 3/4 to 4/3.

    A window with less than `min_visible` of the box `keep` is drawn again: a crop without the head shows little of
    the breed. After `attempts` draws the whole picture is taken.
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
        if keep is None or visible_share(box, keep) >= min_visible:
            return Window(box, out, flip)
    return Window(Box(0, 0, picture.width, picture.height), out, flip)


def random_window(
    rng: np.random.Generator, picture: Size, out: Size, zoom: tuple[float, float], keep: Box | None
) -> Window:
    """A window for dense tasks, of the picture's shorter side times a random `zoom`, anywhere over the picture.

    Its aspect ratio is that of `out`, within a tenth. It may extend beyond the picture. It contains at least two
    thirds of the box `keep`, unless ten draws find no such window.
    """
    shorter = min(picture.height, picture.width)
    box = Box(0, 0, picture.width, picture.height)
    for _ in range(10):
        stretch = math.exp(rng.uniform(-0.1, 0.1) / 2)
        side = shorter * math.exp(rng.uniform(math.log(zoom[0]), math.log(zoom[1])))
        width, height = side * stretch * out.width / out.height, side / stretch
        # The difference of the sides is the range of positions, for larger and smaller windows alike.
        x, y = (
            rng.uniform(min(slack, 0.0), max(slack, 0.0)) for slack in (picture.width - width, picture.height - height)
        )
        box = Box(x, y, x + width, y + height)
        if keep is None or visible_share(box, keep) >= 2 / 3:
            break
    return Window(box, out, bool(rng.random() < 0.5))


def whole_picture(size: Size, side: int) -> Window:
    """The square around the whole picture, from its top left corner, as `side` x `side` px."""
    longer = max(size.height, size.width)
    return Window(Box(0, 0, longer, longer), Size(side, side), flip=False)


def central_square(size: Size, share: float, side: int) -> Window:
    """The central square of `share` of the shorter side, as `side` x `side` px."""
    half = min(size.height, size.width) * share / 2
    x, y = size.width / 2, size.height / 2
    return Window(Box(x - half, y - half, x + half, y + half), Size(side, side), flip=False)


def to_tensor(pixels: UInt8Array, device: torch.device) -> Tensor:
    """uint8 (N, H, W, 3) → float32 (N, 3, H, W) on `device`, channels-last in memory."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float()


def normalise(x: Tensor) -> Tensor:
    """Grey levels (N, 3, H, W) → normalised input, channels-last in memory."""
    constants = Normalisation()
    mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (constants.mean, constants.std))
    return ((x - mean) / std).contiguous(memory_format=torch.channels_last)


def jitter_colours(rng: np.random.Generator, x: Tensor, strength: float, grey_share: float) -> Tensor:
    """Brightness, contrast and saturation of float (N, 3, H, W) grey levels, each within 1 ± `strength`."""
    drawn = rng.uniform(1 - strength, 1 + strength, (3, len(x), 1, 1, 1)).astype(np.float32)
    factors = torch.from_numpy(drawn).to(x.device)
    grey_rows = torch.from_numpy(rng.random((len(x), 1, 1, 1)) < grey_share).to(x.device)
    weights = x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x = x * factors[0]
    grey = (x * weights).sum(dim=1, keepdim=True)
    saturation = factors[1].masked_fill(grey_rows, 0)
    x = grey + saturation * (x - grey)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    return (mean + factors[2] * (x - mean)).clamp(0, 255)


def erase(rng: np.random.Generator, x: Tensor, probability: float) -> Tensor:
    """Random erasing on normalised (N, 3, H, W), in place: 2 to 20 % of the area become the mean colour."""
    height, width = x.shape[2:]
    for row in np.flatnonzero(rng.random(len(x)) < probability):
        share, aspect = rng.uniform(0.02, 0.2), math.exp(rng.uniform(math.log(0.4), math.log(2.5)))
        h = min(height, round(math.sqrt(share * aspect) * height))
        w = min(width, round(math.sqrt(share / aspect) * width))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        x[row, :, top : top + h, left : left + w] = 0
    return x


def mix(rng: np.random.Generator, x: Tensor, targets: Tensor, maps: Tensor, cell: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mixup or CutMix, with equal chance, of a batch with its reverse.

    x (N, 3, H, W), targets (N, classes) and maps (N, C, H/cell, W/cell) are mixed alike; CutMix's rectangle is of whole
    cells. The share is uniform for CutMix (arXiv 1905.04899), Beta(0.3, 0.3) for mixup.
    """
    if rng.random() < 0.5:
        share = float(rng.beta(0.3, 0.3))
        return tuple(share * part + (1 - share) * part.flip(0) for part in (x, targets, maps))  # type: ignore[return-value]
    rows, columns = maps.shape[2:]
    side = math.sqrt(1 - rng.random())
    h, w = round(side * rows), round(side * columns)
    top, left = int(rng.integers(0, rows - h + 1)), int(rng.integers(0, columns - w + 1))
    mixed_x, mixed_maps = x.clone(), maps.clone()
    mixed_maps[:, :, top : top + h, left : left + w] = maps.flip(0)[:, :, top : top + h, left : left + w]
    area_x = (slice(None), slice(None), slice(top * cell, (top + h) * cell), slice(left * cell, (left + w) * cell))
    mixed_x[area_x] = x.flip(0)[area_x]
    share = 1 - h * w / (rows * columns)
    return mixed_x, share * targets + (1 - share) * targets.flip(0), mixed_maps
