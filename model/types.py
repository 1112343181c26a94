"""The central types: the stages between an encoded image and its result.

    bytes → Image → ModelInput → Batch → RawOutput (a row each) → Result

Axis order is always (height, width[, channel]) for arrays and (x, y) for coordinates; colours are RGB; pixel
coordinates have their origin at the top left corner of the upright image.

An input crosses to the worker with its `Geometry` and `QueryParams`: msgspec makes, writes and reads its own structs
in less than half the time of dataclasses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
LabelMapArray = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Float32Array = npt.NDArray[np.float32]
LogitsArray = npt.NDArray[np.float16]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Task(StrEnum):
    CLASSIFY = "classify"
    DETECT = "detect"
    SEGMENT = "segment"


class Reader(StrEnum):
    """The library that reads the pictures of a model's authors. Of some files the two give other pixels."""

    PILLOW = "Pillow"
    OPENCV = "OpenCV"


class Size(msgspec.Struct, frozen=True, array_like=True):
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


class Geometry(msgspec.Struct, frozen=True, array_like=True):
    """How the pixels of a network input map to those of the upright picture.

    `original` is the picture's size; `content` is the size it was resized to, before any cropping or padding.
    Padding lies to the right and below, so point (x, y) of the input is point (x / scale_x, y / scale_y) of the
    picture.
    """

    original: Size
    content: Size

    @property
    def scale_x(self) -> float:
        return self.content.width / self.original.width

    @property
    def scale_y(self) -> float:
        return self.content.height / self.original.height


class ModelInput(msgspec.Struct, frozen=True):
    """A network input before normalisation: uint8 (h, w, 3), RGB."""

    pixels: UInt8Array
    geometry: Geometry


class QueryParams(msgspec.Struct, frozen=True, array_like=True):
    """Request parameters that the network or postprocessing needs.

    `top_k`: classes returned by a classifier. `score_threshold`: detections must score strictly above it; None takes
    the model's own. `max_detections`: at most so many detections. `masks`: compute instance masks. `embed`: of a
    classifier, the features before its last layer instead of labels. `classes`: indices of the classes to return,
    rising; None: all. `iou_threshold`: of two detections that overlap by more the better one is returned; None takes
    the model's own. `agnostic_nms`: whatever their classes. `min_area`: minimum area of a detection's box, or of a
    segment, in square pixels. `confidence_map`: compute the confidence of each pixel. `logits`: of a segmenter, its
    logits at their own resolution instead of a label map. `threshold`: of a segmenter with one output channel, the
    probability above which a pixel is of its class; None takes the model's own.
    """

    top_k: int = 5
    score_threshold: float | None = None
    max_detections: int = 100
    masks: bool = True
    embed: bool = False
    classes: tuple[int, ...] | None = None
    iou_threshold: float | None = None
    agnostic_nms: bool = False
    min_area: int = 0
    confidence_map: bool = False
    logits: bool = False
    threshold: float | None = None

    def segments_of(self, pixels: IntArray) -> BoolArray:
        """Of a segmenter's classes, by their pixels: which are to be returned. bool (classes,)."""
        returned: BoolArray = pixels >= self.min_area
        if self.classes is not None:
            returned &= np.isin(np.arange(len(pixels)), self.classes)
        return returned


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one model and one shape: uint8 (N, h, w, 3), contiguous. Row i has geometry i and params i."""

    pixels: UInt8Array
    geometries: tuple[Geometry, ...]
    params: tuple[QueryParams, ...]

    def __len__(self) -> int:
        return len(self.geometries)

    def row(self, row: int) -> Batch:
        """One row as a batch of its own: a view."""
        return Batch(self.pixels[row : row + 1], (self.geometries[row],), (self.params[row],))


@dataclass(frozen=True, slots=True)
class ClassifyOutput:
    """The k most probable classes, by falling probability: indices int64 (k,), scores float32 (k,)."""

    indices: IntArray
    scores: Float32Array

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite. NaN sorts before every score, so the first k would have it."""
        return bool(np.isfinite(self.scores).all())


@dataclass(frozen=True, slots=True)
class EmbedOutput:
    """The pooled features that a classifier's last layer takes: float32 (d,), of the bundle's `embedding_dimension`."""

    embedding: Float32Array

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.embedding).all())


@dataclass(frozen=True, slots=True)
class DetectOutput:
    """Detections by falling score, after NMS, in pixels of the upright picture.

    boxes float32 (n, 4) as xmin, ymin, xmax, ymax; scores float32 (n,); classes int64 (n,);
    mask_logits float32 (n, m, m) over each box; None if the model has no masks or the request does not want them.
    """

    boxes: Float32Array
    scores: Float32Array
    classes: IntArray
    mask_logits: Float32Array | None

    @property
    def finite(self) -> bool:
        """Whether no number is NaN or infinite. Candidates that are not finite are detections, the first ones."""
        return bool(
            np.isfinite(self.scores).all()
            and np.isfinite(self.boxes).all()
            and (self.mask_logits is None or np.isfinite(self.mask_logits).all())
        )


@dataclass(frozen=True, slots=True)
class SegmentOutput:
    """The class index of each pixel of the upright picture: uint8 (H, W), uint16 beyond 256 classes.

    `areas`: int64 (classes,), the pixels of each class that is to be returned, 0 for the others. `confidences`: float32
    (classes,), the mean probability of each class over its pixels, 0 where it has none. `confidence_map`: uint8 (H, W),
    the probability of each pixel's class, 0 to 255; None if it was not asked for. `finite`: whether the logits that it
    was made from were; a class index cannot show it.
    """

    label_map: LabelMapArray
    areas: IntArray
    confidences: Float32Array
    confidence_map: UInt8Array | None = None
    finite: bool = True


MAX_LOGITS = 8
"""Classes whose logits a window has at each of its cells."""


@dataclass(frozen=True, slots=True)
class LogitsOutput:
    """The logits of a segmenter for a window of a picture, over the padded network input: of the best classes of each
    cell, at most `MAX_LOGITS` of them.

    `logits`: float16 (k, h, w). `classes`: whose they are, uint8 (k, h, w), uint16 beyond 256 classes; of k classes in
    all, their indices in order. `rest`: of the other classes together, float16 (h, w), the logarithm of the sum of
    their exponentials; None if there are none. `finite`: whether the logits that the network computed were. Beyond
    float16's range they are clipped.
    """

    logits: LogitsArray
    classes: LabelMapArray
    rest: LogitsArray | None = None
    finite: bool = True

    def crop(self, rows: slice, columns: slice) -> LogitsOutput:
        """Some of the cells: views."""
        rest = None if self.rest is None else self.rest[rows, columns]
        return LogitsOutput(self.logits[:, rows, columns], self.classes[:, rows, columns], rest, self.finite)


RawOutput = ClassifyOutput | EmbedOutput | DetectOutput | SegmentOutput | LogitsOutput


@dataclass(frozen=True, slots=True)
class Label:
    """A class of a classifier. `score` is its probability, 0 to 1."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box in pixels of the upright picture, as floats."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


@dataclass(frozen=True, slots=True)
class SoftMask:
    """An instance mask at the network's resolution: logits float32 (m, m), spread evenly over the detection's box.

    A pixel is in the mask if its probability is at least `threshold`. Encoders and the renderer paste masks one at a
    time: a hundred masks of a large picture would not fit in memory.
    """

    logits: Float32Array
    threshold: float


@dataclass(frozen=True, slots=True)
class Detection:
    """One detected object. `score` is 0 to 1."""

    label: str
    index: int
    score: float
    box: Box
    mask: SoftMask | None


@dataclass(frozen=True, slots=True)
class Segment:
    """All pixels of one class; `area` counts them. `confidence` is the mean probability of the class over them."""

    label: str
    index: int
    area: int
    confidence: float


Palette = tuple[tuple[int, int, int], ...]
"""The colour of each class: red, green, blue, 0 to 255."""


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """Labels by falling score. `palette`: the model's, here and in the other results; None if it has none."""

    size: Size
    labels: tuple[Label, ...]
    palette: Palette | None = None


@dataclass(frozen=True, slots=True)
class DetectResult:
    """Detections by falling score."""

    size: Size
    detections: tuple[Detection, ...]
    palette: Palette | None = None


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """Segments by falling area; together they cover each pixel of `label_map` at most once, and exactly once if none
    was filtered out. `confidence_map`: as the output has it.
    """

    size: Size
    label_map: LabelMapArray
    segments: tuple[Segment, ...]
    confidence_map: UInt8Array | None = None
    palette: Palette | None = None


Result = ClassifyResult | DetectResult | SegmentResult


@dataclass(frozen=True, slots=True)
class Deployment:
    """The form in which a network is served: `trained`, or `deploy`, an equivalent one with less to compute.

    `largest_difference`: of the outputs of both forms on the reference picture, of the spread of an output's values;
    None if the network was not changed.
    """

    form: Literal["trained", "deploy"] = "trained"
    largest_difference: float | None = None


AS_TRAINED = Deployment()
