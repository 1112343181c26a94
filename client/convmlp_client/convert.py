"""Results from the JSON of the REST API. Unknown members are ignored, so that a newer service may add some."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt

from convmlp_client.geometry import Box, ImageSize
from convmlp_client.masks import Mask
from convmlp_client.results import (
    Answer,
    Classification,
    Detection,
    Detections,
    Embedding,
    Label,
    Meta,
    Result,
    Segment,
    Segmentation,
    Task,
)


class _RLE(msgspec.Struct):
    size: tuple[int, int]
    counts: str


_MaskJSON = _RLE | bytes | list[list[int | float]] | None


class _DetectionJSON(msgspec.Struct):
    label: str
    index: int
    score: float
    box: Box
    mask: _MaskJSON = None


class _SegmentJSON(msgspec.Struct):
    label: str
    index: int
    area: int
    confidence: float
    mask: _MaskJSON = None


class _ClassificationJSON(msgspec.Struct):
    image: ImageSize
    labels: tuple[Label, ...]


class _DetectionsJSON(msgspec.Struct):
    image: ImageSize
    detections: list[_DetectionJSON]


class _EmbeddingJSON(msgspec.Struct):
    image: ImageSize
    embedding: list[float] | bytes


class _SegmentationJSON(msgspec.Struct):
    image: ImageSize
    segments: list[_SegmentJSON]
    confidence_map: bytes | None = None


def result_from_json(data: bytes | msgspec.Raw, meta: Meta) -> Result:
    """The result in one element of `results` of a REST response; its task is that of `meta`, not `ANALYZE`.

    Raises:
        msgspec.DecodeError: `data` is not JSON, or does not match the schema (`msgspec.ValidationError`).
    """
    match meta.task:
        case Task.CLASSIFY:
            classification = msgspec.json.decode(data, type=_ClassificationJSON)
            return Classification(classification.image, classification.labels, meta)
        case Task.DETECT:
            found = msgspec.json.decode(data, type=_DetectionsJSON)
            detections = (
                Detection(row.label, row.index, row.score, row.box, _mask_from_json(row.mask, found.image))
                for row in found.detections
            )
            return Detections(found.image, tuple(detections), meta)
        case Task.SEGMENT:
            segmentation = msgspec.json.decode(data, type=_SegmentationJSON)
            segments = (
                Segment(row.label, row.index, row.area, row.confidence, _mask_from_json(row.mask, segmentation.image))
                for row in segmentation.segments
            )
            return Segmentation(segmentation.image, tuple(segments), meta, segmentation.confidence_map)
        case Task.EMBED:
            embedding = msgspec.json.decode(data, type=_EmbeddingJSON)
            return Embedding(embedding.image, _vector(embedding.embedding), meta)
        case Task.ANALYZE:
            raise ValueError("an analysis has several results")


class ProblemJSON(msgspec.Struct):
    """A problem document (RFC 9457). The last part of `type` is the error's code."""

    type: str
    detail: str
    status: int = 0


class _AnswerJSON(msgspec.Struct):
    """What an answer of an analysis is, by the member that it has."""

    error: ProblemJSON | None = None
    labels: msgspec.Raw = msgspec.Raw()
    detections: msgspec.Raw = msgspec.Raw()
    segments: msgspec.Raw = msgspec.Raw()


def answer_from_json(data: msgspec.Raw, meta: Meta) -> Answer | ProblemJSON:
    """An answer of an analysis, whose task its members show; `meta` is completed with that task. Raises as
    `result_from_json`."""
    members = msgspec.json.decode(data, type=_AnswerJSON)
    if members.error is not None:
        return members.error
    shown = {Task.CLASSIFY: members.labels, Task.DETECT: members.detections, Task.SEGMENT: members.segments}
    task = next((task for task, member in shown.items() if bytes(member)), None)
    if task is None:
        raise msgspec.ValidationError("an answer is no result of a task - at `$.answers`")
    result = result_from_json(data, replace(meta, task=task))
    assert not isinstance(result, Embedding)
    return result


def _vector(embedding: list[float] | bytes) -> npt.NDArray[np.float32]:
    """From numbers, or from bytes of little-endian float32. Raises msgspec.ValidationError."""
    if not isinstance(embedding, bytes):
        return np.array(embedding, np.float32)
    if len(embedding) % 4:
        raise msgspec.ValidationError(
            f"the embedding has {len(embedding)} bytes, expected a multiple of 4 - at `$.embedding`"
        )
    return np.frombuffer(embedding, "<f4").astype(np.float32)


def _mask_from_json(mask: _MaskJSON, size: ImageSize) -> Mask | None:
    match mask:
        case None:
            return None
        case _RLE():
            if mask.size != (size.height, size.width):
                expected = (size.height, size.width)
                raise msgspec.ValidationError(f"the mask has size {mask.size}, expected {expected} - at `$.mask.size`")
            return Mask(size, mask.counts)
        case bytes():
            return Mask(size, mask)
        case _:
            return Mask(size, tuple(tuple(polygon) for polygon in mask))
