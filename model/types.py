"""The central types: what an image becomes on its way to an answer.

    bytes → Image → ModelInput → Batch → RawOutput (a row each) → Result

Axis order is always (height, width[, channel]) for arrays and (x, y) for coordinates; colours are RGB; pixel
coordinates have their origin at the top left corner of the upright image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
LabelMapArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Task(StrEnum):
    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"


@dataclass(frozen=True, slots=True)
class Size:
    """Height and width in pixels."""

    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Image:
    """A decoded picture: uint8 (H, W, 3), RGB, upright (EXIF orientation applied)."""

    pixels: UInt8Array

    @property
    def size(self) -> Size:
        return Size(self.pixels.shape[0], self.pixels.shape[1])


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a network input relates to the upright picture that it was made from.

    `original` is the picture's size; `content` is the size it was resized to, before any cropping or padding.
    Padding, where there is any, lies to the right and below, so a point (x, y) of the input is the point
    (x / scale_x, y / scale_y) of the picture.
    """

    original: Size
    content: Size

    @property
    def scale_x(self) -> float:
        return self.content.width / self.original.width

    @property
    def scale_y(self) -> float:
        return self.content.height / self.original.height


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A picture as the network wants it, not yet normalised: uint8 (h, w, 3), RGB."""

    pixels: UInt8Array
    geometry: Geometry


@dataclass(frozen=True, slots=True)
class QueryParams:
    """What a caller may ask of an answer. `None` means: the model's own value."""

    top_k: int = 5
    score_threshold: float | None = None
    max_detections: int = 100
    masks: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one model and one shape: uint8 (N, h, w, 3), contiguous. Row i has geometry i and params i."""

    pixels: UInt8Array
    geometries: tuple[Geometry, ...]
    params: tuple[QueryParams, ...]

    def __len__(self) -> int:
        return len(self.geometries)


@dataclass(frozen=True, slots=True)
class ClassifyOutput:
    """The best classes by falling probability: indices int64 (k,), scores float32 (k,)."""

    indices: IntArray
    scores: Float32Array


@dataclass(frozen=True, slots=True)
class DetectOutput:
    """Detections by falling score, after NMS, in pixels of the upright picture.

    boxes float32 (n, 4) as xmin, ymin, xmax, ymax; scores float32 (n,); classes int64 (n,);
    mask_logits float32 (n, m, m) over each box, or None where the model has no masks or none were asked for.
    """

    boxes: Float32Array
    scores: Float32Array
    classes: IntArray
    mask_logits: Float32Array | None


@dataclass(frozen=True, slots=True)
class SegmentOutput:
    """The class index of each pixel of the upright picture: uint8 (H, W), or uint16 beyond 256 classes."""

    label_map: LabelMapArray


RawOutput = ClassifyOutput | DetectOutput | SegmentOutput


@dataclass(frozen=True, slots=True)
class Label:
    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Box:
    """Float pixels of the upright picture."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True)
class SoftMask:
    """An instance mask before it is pasted into the picture: logits float32 (m, m) spread over the box.

    It stays this small until an encoder or the renderer needs it, one at a time: a hundred pasted masks of a
    large picture would not fit in memory.
    """

    logits: Float32Array
    threshold: float


@dataclass(frozen=True, slots=True)
class Detection:
    label: str
    index: int
    score: float
    box: Box
    mask: SoftMask | None


@dataclass(frozen=True, slots=True)
class Segment:
    """All pixels of one class; `area` is their number."""

    label: str
    index: int
    area: int


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """Labels by falling score."""

    size: Size
    labels: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class DetectResult:
    """Detections by falling score."""

    size: Size
    detections: tuple[Detection, ...]


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """Segments by falling area; together they cover each pixel of `label_map` exactly once."""

    size: Size
    label_map: LabelMapArray
    segments: tuple[Segment, ...]


Result = ClassifyResult | DetectResult | SegmentResult
