"""Answers of Roboflow's API v0, by structs that are also their JSON Schema in OpenAPI.

Boxes have their centre and size, in pixels of the upright picture; confidences are from 0 to 1.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from model.bundle import BundleConfig
from model.decode import DecodeLimits, decode
from model.postprocess.masks import RLE, MaskFormat, RegionMask, encode_mask, paste_mask, rounded_score
from model.postprocess.polygons import outer_outlines, pixels_along
from model.postprocess.results import postprocess
from model.spec import ClassifyPostSpec
from model.types import ClassifyResult, Detection, DetectResult, RawOutput, Result, SegmentResult, Size
from service.frontend.api.compat.roboflow.parameters import AnswerFormat, Options, PointsFormat
from service.frontend.core.overlay import PictureFormat, encode_label_map, encode_picture, render

OWN_THRESHOLD = 0.5
"""Of labels that do not exclude each other."""
CORNERS = 3
"""Points that a polygon has at least."""


class RoboflowSize(msgspec.Struct, frozen=True):
    width: int
    height: int


class RoboflowPoint(msgspec.Struct, frozen=True):
    x: float
    y: float


class RoboflowRLE(msgspec.Struct, frozen=True):
    """COCO's compressed run lengths; `size` is height, width."""

    size: tuple[int, int]
    counts: str


class RoboflowObject(msgspec.Struct, frozen=True, kw_only=True, rename={"label": "class"}):
    """A detection. Instances have `points`, the outline of the mask's largest part by the centres of its pixels, or
    `rle`."""

    x: float
    y: float
    width: float
    height: float
    confidence: float
    label: str
    class_id: int
    detection_id: str
    points: list[RoboflowPoint] | msgspec.UnsetType = msgspec.UNSET
    rle: RoboflowRLE | msgspec.UnsetType = msgspec.UNSET
    mask_format: PointsFormat | msgspec.UnsetType = msgspec.UNSET


class RoboflowClass(msgspec.Struct, frozen=True, rename={"label": "class"}):
    label: str
    class_id: int
    confidence: float


class RoboflowScore(msgspec.Struct, frozen=True):
    confidence: float
    class_id: int


class RoboflowMap(msgspec.Struct, frozen=True):
    """Base64 of PNGs: the class index of each pixel (16 bits with more than 256 classes), and its probability from 0 to
    255. `class_map` has the class of each index."""

    segmentation_mask: bytes
    confidence_mask: bytes
    class_map: dict[str, str]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """`time`: seconds from the request's arrival. `visualization`: base64 of a JPEG."""

    inference_id: str
    time: float
    image: RoboflowSize
    visualization: bytes | msgspec.UnsetType = msgspec.UNSET


class RoboflowDetection(_Answer, frozen=True, kw_only=True):
    """Detections by falling confidence; instances without a pixel are left out where they have `points`."""

    predictions: list[RoboflowObject]


class RoboflowClassification(_Answer, frozen=True, kw_only=True):
    """All classes, up to 1000, by falling confidence."""

    predictions: list[RoboflowClass]
    top: str
    confidence: float


class RoboflowLabels(_Answer, frozen=True, kw_only=True):
    """The classes of a model whose labels do not exclude each other; `predicted_classes` are above the threshold."""

    predictions: dict[str, RoboflowScore]
    predicted_classes: list[str]


class RoboflowSegmentation(_Answer, frozen=True, kw_only=True):
    predictions: RoboflowMap


ANSWERS = (RoboflowDetection, RoboflowClassification, RoboflowLabels, RoboflowSegmentation)
Answer = RoboflowDetection | RoboflowClassification | RoboflowLabels | RoboflowSegmentation


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes a model's output for one request: JSON, or a JPEG. `started_s` is on the clock of `time.monotonic`."""

    options: Options
    inference_id: str
    started_s: float
    image: bytes
    limits: DecodeLimits

    @property
    def draws(self) -> bool:
        return self.options.answer_format is not AnswerFormat.JSON

    def __call__(self, raw: RawOutput, config: BundleConfig, size: Size) -> bytes:
        result = postprocess(raw, config, size)
        drawn: bytes | msgspec.UnsetType = msgspec.UNSET
        if self.draws:
            drawn = encode_picture(render(decode(self.image, self.limits), result), PictureFormat.JPEG)
            if self.options.answer_format is AnswerFormat.IMAGE:
                return drawn
        return msgspec.json.encode(self._answer(result, config, drawn))

    def _answer(self, result: Result, config: BundleConfig, drawn: bytes | msgspec.UnsetType) -> Answer:
        common: dict[str, Any] = {
            "inference_id": self.inference_id,
            "time": round(time.monotonic() - self.started_s, 6),
            "image": RoboflowSize(result.size.width, result.size.height),
            "visualization": drawn,
        }
        match result:
            case DetectResult(size=size, detections=detections):
                objects = [self._object(detection, size) for detection in detections]
                return RoboflowDetection(predictions=[found for found in objects if found is not None], **common)
            case SegmentResult():
                return RoboflowSegmentation(predictions=map_of(result, config.labels), **common)
            case ClassifyResult(labels=labels):
                scores = [(label, rounded_score(label.score)) for label in labels]
                post = config.postprocessing
                if isinstance(post, ClassifyPostSpec) and post.activation == "sigmoid":
                    threshold = self.options.confidence
                    threshold = OWN_THRESHOLD if threshold is None else threshold
                    return RoboflowLabels(
                        predictions={label.label: RoboflowScore(score, label.index) for label, score in scores},
                        predicted_classes=[label.label for label, score in scores if score > threshold],
                        **common,
                    )
                classes = [RoboflowClass(label.label, label.index, score) for label, score in scores]
                return RoboflowClassification(
                    predictions=classes, top=classes[0].label, confidence=classes[0].confidence, **common
                )

    def _object(self, detection: Detection, size: Size) -> RoboflowObject | None:
        """None for an instance without a pixel, which has no outline."""
        box = detection.box
        masks: dict[str, Any] = {}
        if detection.mask is not None:
            mask, points_format = paste_mask(detection.mask, box, size), self.options.points_format
            masks["mask_format"] = points_format
            if points_format is PointsFormat.RLE:
                rle = encode_mask(mask, MaskFormat.RLE)
                assert isinstance(rle, RLE)
                masks["rle"] = RoboflowRLE((size.height, size.width), rle.counts)
            elif points := outline(mask):
                masks["points"] = points
            else:
                return None
        return RoboflowObject(
            x=round((box.xmin + box.xmax) / 2, 2),
            y=round((box.ymin + box.ymax) / 2, 2),
            width=round(box.xmax - box.xmin, 2),
            height=round(box.ymax - box.ymin, 2),
            confidence=rounded_score(detection.score),
            label=detection.label,
            class_id=detection.index,
            detection_id=str(uuid.uuid4()),
            **masks,
        )


def outline(mask: RegionMask) -> list[RoboflowPoint]:
    """The outline of a mask's largest connected part, by the centres of its outermost pixels; empty without a pixel.

    OpenCV, and so supervision, fills it to the part itself and its holes. A part of one or two pixels repeats a point:
    a polygon has three.
    """
    largest = next(outer_outlines(np.ascontiguousarray(mask.pixels), mask.left, mask.top), None)
    if largest is None:
        return []
    points = [RoboflowPoint(x, y) for x, y in pixels_along(largest).tolist()]
    return [*points, *[points[-1]] * (CORNERS - len(points))]


def map_of(result: SegmentResult, labels: tuple[str, ...]) -> RoboflowMap:
    """A label map with its confidences, which the request asked for."""
    assert result.confidence_map is not None
    names = {str(index): label for index, label in enumerate(labels)}
    return RoboflowMap(encode_label_map(result.label_map), encode_label_map(result.confidence_map), names)
