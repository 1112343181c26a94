"""The JSON of an answer, by structs that are also its JSON Schema in OpenAPI.

Coordinates have two decimals and scores six significant digits: more would be rounding noise of the networks. Bytes
are base64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import assert_never

import msgspec

from model.bundle import BundleConfig
from model.postprocess.masks import RLE, EncodedMask, MaskFormat, encode_detection, encode_segments, rounded_score
from model.postprocess.results import postprocess, unit_length
from model.types import (
    Box,
    ClassifyOutput,
    ClassifyResult,
    DetectResult,
    EmbedOutput,
    RawOutput,
    SegmentResult,
    Size,
    Task,
)
from service.frontend.core.overlay import encode_label_map
from service.frontend.core.parameters import ANALYZE, VectorEncoding
from service.frontend.http.problems import Problem


class ImageSize(msgspec.Struct, frozen=True):
    """Pixels of the upright picture, EXIF orientation applied."""

    width: int
    height: int


class LabelItem(msgspec.Struct, frozen=True):
    label: str
    index: int
    score: float


class BoxItem(msgspec.Struct, frozen=True):
    """Pixels of the upright picture, origin at the top left."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


class RLEItem(msgspec.Struct, frozen=True):
    """COCO's compressed run lengths; `size` is height, width. pycocotools decodes it."""

    size: tuple[int, int]
    counts: str


MaskItem = RLEItem | bytes | list[list[int]]
"""By `mask_format`: RLE, a PNG, or polygons, each [x0, y0, x1, y1, ...], whose union is the mask."""


class DetectionItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """`mask` is missing if the model has no masks, or none were requested."""

    label: str
    index: int
    score: float
    box: BoxItem
    mask: MaskItem | None = None


class SegmentItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """All pixels of one class; `area` is their number, `confidence` the mean probability of the class over them.
    `mask` is missing if none were requested."""

    label: str
    index: int
    area: int
    confidence: float
    mask: MaskItem | None = None


class Classification(msgspec.Struct, frozen=True):
    """Labels by falling score."""

    image: ImageSize
    labels: list[LabelItem]


class Detections(msgspec.Struct, frozen=True):
    """Detections by falling score."""

    image: ImageSize
    detections: list[DetectionItem]


class Segmentation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Segments by falling area; each pixel belongs to exactly one, unless some are filtered out. `confidence_map`, if
    it was requested, is a PNG with the probability of each pixel's class, 0 to 255."""

    image: ImageSize
    segments: list[SegmentItem]
    confidence_map: bytes | None = None


VectorItem = list[float] | bytes
"""By `encoding`: numbers, or their bytes as little-endian float32."""


class Embedding(msgspec.Struct, frozen=True):
    """The pooled features that the classifier's last layer takes."""

    image: ImageSize
    embedding: VectorItem


RESULT_OF_TASK: dict[Task, type[Classification | Detections | Segmentation]] = {
    Task.CLASSIFY: Classification,
    Task.DETECT: Detections,
    Task.SEGMENT: Segmentation,
}


class ImageError(msgspec.Struct, frozen=True):
    """In the place of one of several images that has an error."""

    error: Problem


class Analysis(msgspec.Struct, frozen=True):
    """`answers` has a result, or an error, for each task or model that was named."""

    image: ImageSize
    answers: dict[str, msgspec.Raw]


class AnalysisAnswer(msgspec.Struct, frozen=True):
    """`models`: which model gave the answers of each name."""

    task: str
    models: dict[str, str]
    results: list[msgspec.Raw]


class Answer(msgspec.Struct, frozen=True):
    """Results are JSON already, because each image is encoded by itself."""

    model: str
    task: str
    results: list[msgspec.Raw]


def encode_output(mask_format: MaskFormat, raw: RawOutput, config: BundleConfig, size: Size) -> bytes:
    """One image's place in `results`. `size` is the upright picture's."""
    if not isinstance(raw, ClassifyOutput):
        result = postprocess(raw, config, size)
        assert not isinstance(result, ClassifyResult)
        return encode_result(result, mask_format)
    # Labels are encoded straight from the arrays; `postprocess` would make an object for each in between.
    items, labels = [], config.labels
    for index, score in zip(raw.indices.tolist(), raw.scores.tolist(), strict=True):
        items.append(LabelItem(labels[index], index, float(f"{score:.6g}")))
    return msgspec.json.encode(Classification(ImageSize(size.width, size.height), items))


def encode_result(result: DetectResult | SegmentResult, mask_format: MaskFormat) -> bytes:
    """The place in `results` of an image with detections or segments."""
    return msgspec.json.encode(_item(result, mask_format))


def encode_error(problem: Problem) -> bytes:
    """The place in `results` of an image with an error."""
    return msgspec.json.encode(ImageError(problem))


def encode_analysis(size: Size, answers: Mapping[str, bytes]) -> bytes:
    """The place in `results` of an image that several models answered; the answers are encoded already."""
    raw = {name: msgspec.Raw(answer) for name, answer in answers.items()}
    return msgspec.json.encode(Analysis(ImageSize(size.width, size.height), raw))


def encode_analysis_answer(models: Mapping[str, str], results: Sequence[bytes | msgspec.Raw]) -> bytes:
    """The whole answer of several models around results that are encoded already."""
    return msgspec.json.encode(AnalysisAnswer(ANALYZE, dict(models), list(map(msgspec.Raw, results))))


def encode_embedding(
    normalize: bool, encoding: VectorEncoding, raw: RawOutput, config: BundleConfig, size: Size
) -> bytes:
    """The place in `results` of an image whose embedding was requested."""
    if not isinstance(raw, EmbedOutput):
        raise TypeError(f"model {config.name} gave no embedding; its output is a {type(raw).__name__}")
    vector = unit_length(raw.embedding) if normalize else raw.embedding
    numbers = vector.tolist() if encoding is VectorEncoding.JSON else vector.astype("<f4").tobytes()
    return msgspec.json.encode(Embedding(ImageSize(size.width, size.height), numbers))


def _item(result: DetectResult | SegmentResult, mask_format: MaskFormat) -> Detections | Segmentation:
    image = ImageSize(result.size.width, result.size.height)
    match result:
        case DetectResult(size=size, detections=detections):
            return Detections(
                image,
                [
                    DetectionItem(
                        detection.label,
                        detection.index,
                        rounded_score(detection.score),
                        _box(detection.box),
                        _mask(encode_detection(detection, size, mask_format)),
                    )
                    for detection in detections
                ],
            )
        case SegmentResult(segments=segments, confidence_map=levels):
            masks = encode_segments(result, mask_format)
            return Segmentation(
                image,
                [
                    SegmentItem(
                        segment.label, segment.index, segment.area, rounded_score(segment.confidence), _mask(mask)
                    )
                    for segment, mask in zip(segments, masks, strict=True)
                ],
                None if levels is None else encode_label_map(levels),
            )
        case _:
            assert_never(result)


def _box(box: Box) -> BoxItem:
    return BoxItem(round(box.xmin, 2), round(box.ymin, 2), round(box.xmax, 2), round(box.ymax, 2))


def _mask(mask: EncodedMask) -> MaskItem | None:
    return RLEItem((mask.size.height, mask.size.width), mask.counts) if isinstance(mask, RLE) else mask
