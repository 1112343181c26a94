"""Masks in the encoding of the service, decoded on demand."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from convmlp_client.geometry import BoolArray, ImageSize, Region
from convmlp_client.mask_codecs import decode_png, decode_rle, encode_rle, fill_polygons, rle_area

Polygons = tuple[tuple[float, ...], ...]


class RLE(TypedDict):
    """COCO's compressed run lengths, as pycocotools reads them; `size` is [height, width]."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask of a whole image. `size` is the image's size.

    `data` is the mask as the service encoded it: the counts of COCO's compressed run lengths (str), an 8-bit grey PNG
    (bytes), or polygons, each (x0, y0, x1, y1, …) in the coordinate frame of the boxes. The mask is their union; holes
    are cut open by seams.

    Each call decodes anew and caches nothing, because a hundred decoded masks of a large image take gigabytes.
    Every method that decodes raises ValueError if `data` is malformed or belongs to an image of another size.
    """

    size: ImageSize
    data: str | bytes | Polygons

    @classmethod
    def from_array(cls, pixels: BoolArray) -> Mask:
        """A mask from bool (H, W), encoded as run lengths."""
        height, width = pixels.shape
        return cls(ImageSize(width, height), encode_rle(pixels))

    def to_array(self) -> BoolArray:
        """The mask of the whole image: bool (H, W), contiguous."""
        whole = np.zeros((self.size.height, self.size.width), np.bool_)
        region = self.region()
        height, width = region.pixels.shape
        whole[region.top : region.top + height, region.left : region.left + width] = region.pixels
        return whole

    def region(self) -> Region:
        """A rectangle of the image that contains all mask pixels. This is cheaper than `to_array`."""
        match self.data:
            case str():
                return decode_rle(self.data, self.size)
            case bytes():
                return Region(0, 0, decode_png(self.data, self.size) > 127)
            case _:
                return fill_polygons(self.data, self.size)

    def rle(self) -> RLE:
        """COCO's compressed run lengths, as `pycocotools.mask.decode` reads them."""
        counts = self.data if isinstance(self.data, str) else encode_rle(self.to_array())
        return {"size": [self.size.height, self.size.width], "counts": counts}

    @property
    def area(self) -> int:
        """Number of mask pixels."""
        if isinstance(self.data, str):
            return rle_area(self.data, self.size)
        return int(np.count_nonzero(self.region().pixels))

    def to_json(self) -> RLE | str | list[list[float]]:
        """The mask as in the REST API's JSON: run lengths, PNG in base64, or polygons."""
        match self.data:
            case str():
                return self.rle()
            case bytes():
                return base64.b64encode(self.data).decode("ascii")
            case _:
                return [list(polygon) for polygon in self.data]


def require_mask(mask: Mask | None) -> Mask:
    """The mask of a segment.

    Raises:
        ValueError: the segment has no mask.
    """
    if mask is None:
        raise ValueError("the result has no masks; request them with a mask_format other than 'none'")
    return mask
