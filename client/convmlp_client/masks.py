"""Masks as they came over the wire, decoded when they are looked at."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from convmlp_client.geometry import BoolArray, ImageSize, Region
from convmlp_client.mask_codecs import decode_png, decode_rle, encode_rle, fill_polygons, rle_area

Polygons = tuple[tuple[float, ...], ...]


class RLE(TypedDict):
    """COCO's compressed run lengths, as pycocotools takes them; `size` is [height, width]."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask over the whole picture of `size`.

    `data` is as the server wrote it, by the mask format that was asked for: COCO's compressed run lengths (str), an
    8-bit grey PNG (bytes), or polygons, each (x0, y0, x1, y1, ...), in the frame of the boxes: pixel (column, row)
    spans column to column + 1 and row to row + 1. Polygons have no holes.

    Decoding is done at each call and nothing of it kept: a hundred decoded masks of a large picture are gigabytes.
    Every method that decodes raises ValueError where `data` is malformed or of another picture size.
    """

    size: ImageSize
    data: str | bytes | Polygons

    @classmethod
    def from_array(cls, pixels: BoolArray) -> Mask:
        """A mask of bool (H, W), kept as run lengths."""
        height, width = pixels.shape
        return cls(ImageSize(width, height), encode_rle(pixels))

    def to_array(self) -> BoolArray:
        """The whole picture's mask: bool (H, W), True where it is set, contiguous."""
        whole = np.zeros((self.size.height, self.size.width), np.bool_)
        region = self.region()
        height, width = region.pixels.shape
        whole[region.top : region.top + height, region.left : region.left + width] = region.pixels
        return whole

    def region(self) -> Region:
        """A rectangle of the picture outside of which the mask is not set: cheaper than the whole."""
        match self.data:
            case str():
                return decode_rle(self.data, self.size)
            case bytes():
                return Region(0, 0, decode_png(self.data, self.size))
            case _:
                return fill_polygons(self.data, self.size)

    def rle(self) -> RLE:
        """COCO's compressed run lengths; `pycocotools.mask.decode` takes them."""
        counts = self.data if isinstance(self.data, str) else encode_rle(self.to_array())
        return {"size": [self.size.height, self.size.width], "counts": counts}

    @property
    def area(self) -> int:
        """How many pixels are set."""
        if isinstance(self.data, str):
            return rle_area(self.data, self.size)
        return int(np.count_nonzero(self.region().pixels))

    def to_json(self) -> RLE | str | list[list[float]]:
        """As the REST API writes it: run lengths, the PNG in base64, or polygons."""
        match self.data:
            case str():
                return self.rle()
            case bytes():
                return base64.b64encode(self.data).decode("ascii")
            case _:
                return [list(polygon) for polygon in self.data]


def needed(mask: Mask | None) -> Mask:
    """A segment's mask.

    Raises:
        ValueError: it has none.
    """
    if mask is None:
        raise ValueError("the answer has no masks; ask for them, with any mask format but none")
    return mask
