"""Answers: what is in a picture, as frozen data.

Coordinates are float pixels of the upright picture (EXIF orientation applied), origin at its top left corner, x to
the right, y down. Scores are probabilities, 0 to 1. An `index` is the class's position in the model's labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import PIL.Image

from convmlp_client.coco import CategoryIds, CocoDetection, CocoSegment, category_id
from convmlp_client.drawing import LabelMap, draw_detections, draw_labels, draw_segments
from convmlp_client.geometry import Box, ImageSize
from convmlp_client.images import ImageInput, opened_image
from convmlp_client.masks import Mask, needed


class Task(StrEnum):
    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"


@dataclass(frozen=True, slots=True)
class Meta:
    """Where an answer comes from.

    `timings_ms` are the server's own, by stage: decode, queue, infer, post, total; empty where it told none.
    `request_id` is what the server's log knows the request by; empty where it told none.
    """

    model: str
    task: Task
    request_id: str = ""
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Label:
    label: str
    index: int
    score: float

    def to_dict(self) -> dict[str, Any]:
        return {"label": self.label, "index": self.index, "score": self.score}


@dataclass(frozen=True, slots=True)
class Detection:
    """One object. `mask` is None where the model has no masks, or none were asked for."""

    label: str
    index: int
    score: float
    box: Box
    mask: Mask | None = None

    def to_dict(self) -> dict[str, Any]:
        box = {"xmin": self.box.xmin, "ymin": self.box.ymin, "xmax": self.box.xmax, "ymax": self.box.ymax}
        row = {"label": self.label, "index": self.index, "score": self.score, "box": box}
        return row if self.mask is None else {**row, "mask": self.mask.to_json()}


@dataclass(frozen=True, slots=True)
class Segment:
    """All pixels of one class; `area` is their number. `mask` is None where none were asked for."""

    label: str
    index: int
    area: int
    mask: Mask | None = None

    def to_dict(self) -> dict[str, Any]:
        row = {"label": self.label, "index": self.index, "area": self.area}
        return row if self.mask is None else {**row, "mask": self.mask.to_json()}


@dataclass(frozen=True, slots=True)
class Classification:
    """What a picture shows: labels by falling score. `image` is the upright picture's size."""

    image: ImageSize
    labels: tuple[Label, ...]
    meta: Meta

    def draw(self, image: ImageInput) -> PIL.Image.Image:
        """The picture that was asked about, RGB and upright, with the labels drawn on a copy of it.

        Raises:
            ValueError: `image` has another size than the answer.
            TypeError, OSError: `image` cannot be read; as `convmlp_client.images.opened_image`.
        """
        picture = _canvas(image, self.image)
        draw_labels(picture, self.labels)
        return picture

    def to_dict(self) -> dict[str, Any]:
        """As the REST API writes it among `results`."""
        return {"image": _size(self.image), "labels": [one.to_dict() for one in self.labels]}


@dataclass(frozen=True, slots=True)
class Detections:
    """The objects in a picture, by falling score. `image` is the upright picture's size."""

    image: ImageSize
    detections: tuple[Detection, ...]
    meta: Meta

    def draw(self, image: ImageInput) -> PIL.Image.Image:
        """The picture that was asked about, RGB and upright, with masks, boxes and labels drawn on a copy of it.

        Raises:
            ValueError: `image` has another size than the answer, or a mask is malformed.
            TypeError, OSError: `image` cannot be read; as `convmlp_client.images.opened_image`.
        """
        picture = _canvas(image, self.image)
        draw_detections(picture, self.detections, lambda one: None if one.mask is None else one.mask.region())
        return picture

    def to_coco(self, image_id: int | str, category_ids: CategoryIds | None = None) -> list[CocoDetection]:
        """COCO's results format: boxes as [x, y, width, height], masks as run lengths where there are any.

        `category_ids` gives the category's id of each class index; without it the index itself is written.
        `COCO.loadRes` takes an object's area from its box where there is one; to evaluate masks by their own size
        (COCOeval's small, medium, large) remove `bbox` from the rows.

        Raises:
            ValueError: `category_ids` has no id for a class, or a mask is malformed.
        """
        rows: list[CocoDetection] = []
        for one in self.detections:
            box = one.box
            row: CocoDetection = {
                "image_id": image_id,
                "category_id": category_id(one.index, category_ids),
                "bbox": [box.xmin, box.ymin, box.xmax - box.xmin, box.ymax - box.ymin],
                "score": one.score,
            }
            if one.mask is not None:
                row["segmentation"] = one.mask.rle()
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """As the REST API writes it among `results`."""
        return {"image": _size(self.image), "detections": [one.to_dict() for one in self.detections]}


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A class for each pixel: segments by falling area, of which each pixel belongs to exactly one.

    `image` is the upright picture's size.
    """

    image: ImageSize
    segments: tuple[Segment, ...]
    meta: Meta

    def label_map(self) -> LabelMap:
        """The class index of each pixel: (H, W), uint8, or uint16 beyond 256 classes.

        Polygons have their holes closed; what lies in the hole of a larger segment keeps its own class.

        Raises:
            ValueError: the answer has no masks, or one is malformed.
        """
        return self._painted([one.index for one in self.segments])

    def draw(self, image: ImageInput) -> PIL.Image.Image:
        """The picture that was asked about, RGB and upright, with segments tinted and named on a copy of it.

        What is called background is not tinted; where the answer has no masks, nothing is.

        Raises:
            ValueError: `image` has another size than the answer, or a mask is malformed.
            TypeError, OSError: `image` cannot be read; as `convmlp_client.images.opened_image`.
        """
        picture = _canvas(image, self.image)
        # Places in the list, not class indices: these are few whatever the server wrote.
        places = range(1, len(self.segments) + 1)
        masked = all(one.mask is not None for one in self.segments)
        draw_segments(picture, self.segments, self._painted(places) if masked else None, places)
        return picture

    def to_coco(self, image_id: int | str, category_ids: CategoryIds | None = None) -> list[CocoSegment]:
        """As COCO's stuff segmentation: a row with run lengths for each class in the picture, without scores.

        `category_ids` gives the category's id of each class index; without it the index itself is written.

        Raises:
            ValueError: `category_ids` has no id for a class, the answer has no masks, or one is malformed.
        """
        return [
            {
                "image_id": image_id,
                "category_id": category_id(one.index, category_ids),
                "segmentation": needed(one.mask).rle(),
                "area": one.area,
            }
            for one in self.segments
        ]

    def to_dict(self) -> dict[str, Any]:
        """As the REST API writes it among `results`."""
        return {"image": _size(self.image), "segments": [one.to_dict() for one in self.segments]}

    def _painted(self, values: Sequence[int]) -> LabelMap:
        """Each segment's value in its pixels."""
        largest = max(values, default=0)
        if largest > np.iinfo(np.uint16).max:
            raise ValueError(f"the answer has class {largest}; a label map has 16 bits for it")
        dtype = np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16
        label_map = np.zeros((self.image.height, self.image.width), dtype)
        for segment, value in zip(self.segments, values, strict=True):
            region = needed(segment.mask).region()
            height, width = region.pixels.shape
            part = label_map[region.top : region.top + height, region.left : region.left + width]
            np.copyto(part, dtype(value), where=region.pixels)
        return label_map


Result = Classification | Detections | Segmentation


def _size(size: ImageSize) -> dict[str, int]:
    return {"width": size.width, "height": size.height}


def _canvas(image: ImageInput, size: ImageSize) -> PIL.Image.Image:
    picture = opened_image(image)
    if picture.size != (size.width, size.height):
        raise ValueError(
            f"the picture is {picture.width} x {picture.height}, the answer is of one of {size.width} x {size.height}; "
            "draw on the picture that was asked about, and scale it afterwards"
        )
    return picture


@dataclass(frozen=True, slots=True)
class Model:
    """A served model. `default`: it answers where a request of its task names none. `labels` by class index.

    `ready`: it has just proven itself on a reference picture. `precision` is what the network computes in.
    """

    name: str
    task: Task
    default: bool
    ready: bool
    device: str
    precision: str
    labels: tuple[str, ...]
    weights_sha256: str
