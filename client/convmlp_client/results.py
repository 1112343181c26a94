"""What the service returns, as frozen dataclasses.

Coordinates are float pixels of the upright image (EXIF orientation applied): origin at the top left corner, x to the
right, y down. Scores are probabilities from 0 to 1. `index` is the position of a class in the model's labels.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from convmlp_client.coco import CategoryIds, CocoDetection, CocoSegment, category_id
from convmlp_client.drawing import (
    LabelMap,
    Palette,
    Rectangle,
    draw_detections,
    draw_labels,
    draw_segments,
    draw_tags,
    panel_tops,
)
from convmlp_client.errors import ClientError
from convmlp_client.geometry import Box, ImageSize
from convmlp_client.images import ImageInput, opened_image
from convmlp_client.mask_codecs import decode_png
from convmlp_client.masks import Mask, require_mask


class Task(StrEnum):
    """What a result is. Models have one of the first three: classifiers also embed."""

    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"
    EMBED = "embed"
    ANALYZE = "analyze"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that the service serves; each version is one.

    name: with the version, unless that is 1: `pets`, `pets@2`.
    default: a request that names no model gets this one.
    ready: the model passed its last self-check.
    precision: number format of the network, such as "fp32".
    labels: class names by class index.
    embedding_dimension: length of a classifier's embeddings; None for other models.
    share: of the requests for the name without a version, 0 to 1.
    score_threshold: the model's own, of detections or of a multi-label classifier's labels; None if it has none.
    palette: the colours of its classes, RGB, 0 to 255, by class index; None: they follow from the labels.
    """

    name: str
    task: Task
    default: bool
    ready: bool
    device: str
    precision: str
    labels: tuple[str, ...]
    weights_sha256: str
    embedding_dimension: int | None = None
    version: str = "1"
    share: float = 1.0
    score_threshold: float | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Meta:
    """How a result was made.

    request_id: identifies the request in the service's log; empty if the service gave none.
    timings_ms: the service's time in ms by stage: decode, queue, infer, post, total; empty if the service gave none.
    precision: what the network computed in: exact, fp32, bf16 or fp16; empty if the service gave none.
    """

    model: str
    task: Task
    request_id: str = ""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    precision: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A class of the whole image, and its score."""

    label: str
    index: int
    score: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Detection:
    """An object. `mask` is None if the model has no masks, or none were requested."""

    label: str
    index: int
    score: float
    box: Box
    mask: Mask | None = None

    def to_dict(self) -> dict[str, Any]:
        row = {"label": self.label, "index": self.index, "score": self.score, "box": asdict(self.box)}
        return row if self.mask is None else {**row, "mask": self.mask.to_json()}


@dataclass(frozen=True, slots=True)
class Segment:
    """All pixels of one class. `area` is their number, `confidence` the mean probability of the class over them.

    `mask` is None if none were requested.
    """

    label: str
    index: int
    area: int
    confidence: float
    mask: Mask | None = None

    def to_dict(self) -> dict[str, Any]:
        row = {"label": self.label, "index": self.index, "area": self.area, "confidence": self.confidence}
        return row if self.mask is None else {**row, "mask": self.mask.to_json()}


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of an image, highest score first. `image` is the size of the upright image."""

    image: ImageSize
    labels: tuple[Label, ...]
    meta: Meta

    def draw(self, image: ImageInput, palette: Palette | None = None) -> PIL.Image.Image:
        """A copy of the image that was classified, upright and RGB, with the labels drawn on it.

        `palette`: that of the `Model`, here and in other results; without it, colours follow from the labels.

        Raises:
            ValueError: `image` has another size than the classified image.
            TypeError, OSError: `image` cannot be read; as `convmlp_client.images.opened_image`.
        """
        canvas = _open_canvas(image, self.image)
        draw_labels(canvas, self.labels, palette=palette)
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """The result as in `results` of the REST API."""
        return {"image": asdict(self.image), "labels": [label.to_dict() for label in self.labels]}


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The pooled features of an image, which a classifier's last layer takes: `vector`, float32 (d,).

    `image` is the size of the upright image. Embeddings with equal numbers are equal.
    """

    image: ImageSize
    vector: npt.NDArray[np.float32]
    meta: Meta

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Embedding):
            return NotImplemented
        return (self.image, self.meta) == (other.image, other.meta) and np.array_equal(self.vector, other.vector)

    __hash__ = None  # type: ignore[assignment]

    def to_dict(self) -> dict[str, Any]:
        """The result as in `results` of the REST API."""
        return {"image": asdict(self.image), "embedding": self.vector.tolist()}


@dataclass(frozen=True, slots=True)
class Detections:
    """The objects in an image, highest score first. `image` is the size of the upright image."""

    image: ImageSize
    detections: tuple[Detection, ...]
    meta: Meta

    def draw(self, image: ImageInput, palette: Palette | None = None) -> PIL.Image.Image:
        """A copy of the image that was searched, upright and RGB, with masks, boxes and labels drawn on it.

        Raises:
            ValueError: `image` has another size than the searched image, or a mask is malformed.
            TypeError, OSError: `image` cannot be read; as `convmlp_client.images.opened_image`.
        """
        canvas = _open_canvas(image, self.image)
        self.draw_on(canvas, palette)
        draw_tags(canvas, self.detections, palette=palette)
        return canvas

    def draw_on(self, canvas: PIL.Image.Image, palette: Palette | None = None) -> None:
        """Draw masks and boxes on an RGB image of the same size. Raises ValueError if a mask is malformed."""
        draw_detections(
            canvas, self.detections, lambda one: None if one.mask is None else one.mask.region(), palette=palette
        )

    def to_coco(self, image_id: int | str, category_ids: CategoryIds | None = None) -> list[CocoDetection]:
        """The detections in COCO's results format: boxes as [x, y, width, height], masks as run lengths.

        `category_ids` gives the category id of each class index. By default the category id is the class index.
        `COCO.loadRes` computes an object's area from `bbox` if a row has one. Remove `bbox` from the rows to evaluate
        masks by their own area (COCOeval's small, medium, large).

        Raises:
            ValueError: `category_ids` has no id for a class, or a mask is malformed.
        """
        rows: list[CocoDetection] = []
        for detection in self.detections:
            box = detection.box
            row: CocoDetection = {
                "image_id": image_id,
                "category_id": category_id(detection.index, category_ids),
                "bbox": [box.xmin, box.ymin, box.xmax - box.xmin, box.ymax - box.ymin],
                "score": detection.score,
            }
            if detection.mask is not None:
                row["segmentation"] = detection.mask.rle()
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The result as in `results` of the REST API."""
        return {"image": asdict(self.image), "detections": [one.to_dict() for one in self.detections]}


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A class for each pixel of an image: segments, largest first. Each pixel belongs to exactly one segment, unless
    `classes` or `min_area` left some out.

    `image` is the size of the upright image. `confidence_png` is an 8-bit grey PNG, which `confidence_map` decodes;
    None if it was not requested.
    """

    image: ImageSize
    segments: tuple[Segment, ...]
    meta: Meta
    confidence_png: bytes | None = None

    def confidence_map(self) -> npt.NDArray[np.uint8]:
        """The probability of each pixel's class, 0 to 255: (H, W), uint8. Also of pixels whose segment was left out.

        Raises:
            ValueError: it was not requested, or is malformed.
        """
        if self.confidence_png is None:
            raise ValueError("the result has no confidence map; request it with confidence_map=True")
        return decode_png(self.confidence_png, self.image, "confidence map")

    def label_map(self) -> LabelMap:
        """The class index of each pixel: (H, W), uint8, or uint16 if a class index is above 254.

        Pixels of segments that were left out have the largest value of the type.

        Raises:
            ValueError: the result has no masks, or one is malformed.
        """
        return self._paint([segment.index for segment in self.segments], fill=-1)

    def draw(self, image: ImageInput, palette: Palette | None = None) -> PIL.Image.Image:
        """A copy of the image that was segmented, upright and RGB, with segments tinted and named.

        The class "background" is not tinted. Without masks no segment is tinted.

        Raises:
            ValueError: `image` has another size than the segmented image, or a mask is malformed.
            TypeError, OSError: `image` cannot be read; as `convmlp_client.images.opened_image`.
        """
        canvas = _open_canvas(image, self.image)
        self.draw_on(canvas, palette=palette)
        return canvas

    def draw_on(self, canvas: PIL.Image.Image, top: int = 0, palette: Palette | None = None) -> Rectangle | None:
        """Draw on an RGB image of the same size, the panel from row `top` on. Raises ValueError as `draw`.

        Returns where the panel is, if there is any.
        """
        # Positions in the list instead of class indices: they are small whatever indices the service sent.
        positions = range(1, len(self.segments) + 1)
        has_masks = all(segment.mask is not None for segment in self.segments)
        label_map = self._paint(positions, fill=0) if has_masks else None
        area = canvas.width * canvas.height
        return draw_segments(canvas, self.segments, label_map, positions, area, top, palette)

    def to_coco(self, image_id: int | str, category_ids: CategoryIds | None = None) -> list[CocoSegment]:
        """The segments in COCO's stuff segmentation format: run lengths for each class, without scores.

        `category_ids` gives the category id of each class index. By default the category id is the class index.

        Raises:
            ValueError: `category_ids` has no id for a class, the result has no masks, or one is malformed.
        """
        return [
            {
                "image_id": image_id,
                "category_id": category_id(segment.index, category_ids),
                "segmentation": require_mask(segment.mask).rle(),
                "area": segment.area,
            }
            for segment in self.segments
        ]

    def to_dict(self) -> dict[str, Any]:
        """The result as in `results` of the REST API."""
        row = {"image": asdict(self.image), "segments": [segment.to_dict() for segment in self.segments]}
        if self.confidence_png is None:
            return row
        return {**row, "confidence_map": base64.b64encode(self.confidence_png).decode("ascii")}

    def _paint(self, values: Sequence[int], fill: int) -> LabelMap:
        """(H, W): at each pixel the value of its segment, elsewhere `fill`, of which -1 is the largest value."""
        largest = max(values, default=0)
        if largest >= np.iinfo(np.uint16).max:
            raise ValueError(f"the result has class index {largest}; a label map holds at most 65534")
        dtype = np.uint8 if largest < np.iinfo(np.uint8).max else np.uint16
        label_map = np.full((self.image.height, self.image.width), fill % (np.iinfo(dtype).max + 1), dtype)
        for segment, value in zip(self.segments, values, strict=True):
            region = require_mask(segment.mask).region()
            height, width = region.pixels.shape
            part = label_map[region.top : region.top + height, region.left : region.left + width]
            np.copyto(part, dtype(value), where=region.pixels)
        return label_map


Answer = Classification | Detections | Segmentation


@dataclass(frozen=True, slots=True)
class Analysis:
    """The answers of several tasks, or models, for one image. `image` is the size of the upright image.

    answers: by task, or by model if models were named: the result, or the error of a model that failed.
    models: the model of each answer. `meta.model` is empty.
    """

    image: ImageSize
    answers: Mapping[str, Answer | ClientError]
    models: Mapping[str, str]
    meta: Meta

    def __getitem__(self, name: str) -> Answer:
        """The result of a task, or a model. Raises its error, or KeyError for another name."""
        answer = self.answers[name]
        if isinstance(answer, ClientError):
            raise answer
        return answer

    def draw(self, image: ImageInput, palettes: Mapping[str, Palette | None] = MappingProxyType({})) -> PIL.Image.Image:
        """A copy of the image that was analysed, upright and RGB, with all answers drawn on it.

        `palettes`: by the models' names, as `Model` has them.

        Raises:
            ClientError: an answer is an error: a drawing cannot show that it is missing.
            ValueError: `image` has another size than the analysed image, or a mask is malformed.
            TypeError, OSError: `image` cannot be read; as `convmlp_client.images.opened_image`.
        """
        canvas = _open_canvas(image, self.image)
        results = [self[name] for name in self.answers]
        classified = [result for result in results if isinstance(result, Classification)]
        segmented = [result for result in results if isinstance(result, Segmentation)]
        label_tops, segment_tops = panel_tops(
            canvas.size, [result.labels for result in classified], [result.segments for result in segmented]
        )
        panels = [
            one.draw_on(canvas, top, palettes.get(one.meta.model))
            for one, top in zip(segmented, segment_tops, strict=True)
        ]
        detected = [result for result in results if isinstance(result, Detections)]
        for detection in detected:
            detection.draw_on(canvas, palettes.get(detection.meta.model))
        panels += [
            draw_labels(canvas, one.labels, top, palettes.get(one.meta.model))
            for one, top in zip(classified, label_tops, strict=True)
        ]
        for detection in detected:
            draw_tags(canvas, detection.detections, panels, palette=palettes.get(detection.meta.model))
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """The result as in `results` of the REST API, of the answers that are no errors."""
        answers = {name: one.to_dict() for name, one in self.answers.items() if not isinstance(one, ClientError)}
        return {"image": asdict(self.image), "answers": answers}


Result = Answer | Embedding
AnyResult = Result | Analysis
"""What a request returns for an image."""


def _open_canvas(image: ImageInput, size: ImageSize) -> PIL.Image.Image:
    canvas = opened_image(image)
    if canvas.size != (size.width, size.height):
        raise ValueError(
            f"the image is {canvas.width} x {canvas.height}, expected {size.width} x {size.height} as in the result; "
            "draw on the image that was sent, and resize afterwards"
        )
    return canvas
