"""The answers of an ONNX file by ONNX Runtime, compared with the service's exact answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import torch

from model.bundle import Bundle, BundleConfig
from model.decode import decode
from model.onnx.graphs import MAX_DETECTIONS, Signature
from model.postprocess.results import postprocess, require_finite
from model.precision import Precision, comparison_pictures, disagreement, make_predictor
from model.predictor import LIMITS, load_network
from model.preprocess import prepare
from model.reference import BOX_IOU, REFERENCE_PICTURE, iou
from model.spec import CenterCropSpec
from model.types import (
    Batch,
    Box,
    ClassifyOutput,
    DetectOutput,
    Float32Array,
    Image,
    ModelInput,
    QueryParams,
    RawOutput,
    SegmentOutput,
    Task,
)

QUIET = 3
"""ONNX Runtime's log level: errors."""
MASK_TOLERANCE = 0.05
"""Of a mask's probabilities."""


@dataclass(slots=True)
class Differences:
    """The largest differences of any answer, by what they are of; and why an answer is out of tolerance, or None."""

    largest: dict[str, float] = field(default_factory=dict)
    mismatch: str | None = None

    def note(self, name: str, difference: float) -> None:
        self.largest[name] = max(self.largest.get(name, 0.0), difference)


def compare(content: bytes, bundle: Bundle, signature: Signature) -> Differences:
    """Run the reference picture, its variants and a part of it, alone and in batches of three.

    Args:
        content: of the ONNX file.
        bundle: that it was exported from.
        signature: of its graph.

    Raises:
        NotFinite: the network's output has NaN or infinity.
    """
    config = bundle.config
    session = _session(content)
    predictor = make_predictor(bundle, torch.device("cpu"), Precision.EXACT, load_network(bundle))
    params = QueryParams(top_k=len(config.labels), max_detections=MAX_DETECTIONS)
    if config.task is Task.CLASSIFY:
        params = QueryParams(top_k=len(config.labels), score_threshold=-1.0)  # all of them
    differences = Differences()
    for inputs in _batches(config):
        batch = Batch(
            np.stack([one.pixels for one in inputs]), tuple(one.geometry for one in inputs), (params,) * len(inputs)
        )
        outputs = session.run(list(signature.outputs), _feed(inputs, config))
        for row, expected in enumerate(map(require_finite, predictor.predict(batch))):
            values = outputs if config.task is Task.DETECT else [value[row] for value in outputs]
            found = _raw_output(config, values)
            for name, difference in _differences(found, expected):
                differences.note(name, difference)
            size = inputs[row].geometry.original
            results = (postprocess(raw, config, size) for raw in (found, expected))
            differences.mismatch = differences.mismatch or disagreement(*results)
    if differences.largest.get("masks", 0.0) > MASK_TOLERANCE:
        differences.mismatch = differences.mismatch or f"masks differ by {differences.largest['masks']:.3f}"
    return differences


def _session(content: bytes) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU, with as many threads as torch."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _feed(inputs: Sequence[ModelInput], config: BundleConfig) -> dict[str, Any]:
    """A graph's inputs: pixels, without padding, and where the pipeline keeps the ratio the picture's size."""
    pixels, geometry = np.stack([one.pixels for one in inputs]), inputs[0].geometry
    if isinstance(config.preprocessing, CenterCropSpec):
        return {"image": pixels}
    pixels = pixels[:, : geometry.content.height, : geometry.content.width]
    return {
        "image": np.ascontiguousarray(pixels),
        "size": np.array((geometry.original.height, geometry.original.width)),
    }


def _batches(config: BundleConfig) -> Iterator[Sequence[ModelInput]]:
    """Inputs of one size; of detectors single ones."""
    variants = comparison_pictures(config)
    yield variants[:1]
    if config.task is Task.DETECT:
        yield from ([one] for one in variants[1:])
    else:
        yield variants
    if config.task is not Task.CLASSIFY:
        whole = decode(REFERENCE_PICTURE.read_bytes(), LIMITS, config.preprocessing.reader).pixels
        part = whole[: whole.shape[0] // 2, : whole.shape[1] // 3]
        yield [prepare(Image(np.ascontiguousarray(part)), config.preprocessing)]


def _raw_output(config: BundleConfig, values: Sequence[Any]) -> RawOutput:
    """A picture's outputs, as the predictor would return them."""
    match config.task:
        case Task.CLASSIFY:
            (scores,) = values
            order = np.argsort(-scores, kind="stable")
            return ClassifyOutput(order, scores[order])
        case Task.SEGMENT:
            (labels,) = values
            label_map = labels if labels.dtype == np.uint8 else labels.astype(np.uint16)
            classes = len(config.labels)
            # The graph has no confidences.
            areas = np.bincount(label_map.ravel(), minlength=classes)
            return SegmentOutput(label_map, areas, np.zeros(classes, np.float32))
        case Task.DETECT:
            boxes, scores, classes, *masks = values
            # Rounding could make a probability 0 or 1, whose logit is not finite.
            logits = [np.log(clipped / (1 - clipped)) for clipped in (mask.clip(1e-7, 1 - 1e-7) for mask in masks)]
            return DetectOutput(boxes, scores, classes, logits[0] if logits else None)


def _differences(found: RawOutput, expected: RawOutput) -> Iterator[tuple[str, float]]:
    match found, expected:
        case ClassifyOutput(), ClassifyOutput():
            by_class = found.scores[found.indices.argsort()] - expected.scores[expected.indices.argsort()]
            yield "scores", float(np.abs(by_class).max())
        case SegmentOutput(), SegmentOutput():
            yield "share of pixels", float((found.label_map != expected.label_map).mean())
        case DetectOutput(), DetectOutput():
            for at, box in enumerate(expected.boxes):
                yield from _detection_differences(found, expected, at, Box(*box.tolist()))


def _detection_differences(
    found: DetectOutput, expected: DetectOutput, at: int, box: Box
) -> Iterator[tuple[str, float]]:
    """Of an expected detection, from the one of its class with the best overlap. Where there is none near, the
    comparison with the tolerances decides."""
    same = np.flatnonzero(found.classes == expected.classes[at]).tolist()
    overlaps = {other: iou(Box(*found.boxes[other].tolist()), box) for other in same}
    best = max(overlaps, key=overlaps.__getitem__, default=None)
    if best is None or overlaps[best] < BOX_IOU:
        return
    yield "scores", float(abs(found.scores[best] - expected.scores[at]))
    yield "boxes, px", float(np.abs(found.boxes[best] - expected.boxes[at]).max())
    if found.mask_logits is not None and expected.mask_logits is not None:
        yield "masks", float(np.abs(_sigmoid(found.mask_logits[best]) - _sigmoid(expected.mask_logits[at])).max())


def _sigmoid(logits: Float32Array) -> Float32Array:
    probabilities: Float32Array = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return probabilities
