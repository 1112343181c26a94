"""Arrays on the wire: the input of a Predict, the output of an Answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from model.types import ClassifyOutput, DetectOutput, ModelInput, RawOutput, SegmentOutput
from service.wire.messages import Answer, ArraySpec, MalformedMessage, Outlook, Predict

INLINE_BYTES = 4096
"""An output of no more than this travels in the header itself."""


def input_from_frames(message: Predict, frames: list[memoryview]) -> ModelInput:
    """The network input that a Predict carries; a view on its one frame, not a copy.

    Raises:
        MalformedMessage: the frames are not what the header says.
    """
    shape = (message.height, message.width, 3)
    sizes = [frame.nbytes for frame in frames]
    if min(shape) < 1 or sizes != [message.height * message.width * 3]:
        raise MalformedMessage(f"one uint8 array of shape {shape} was announced, {sizes} bytes came")
    return ModelInput(np.frombuffer(frames[0], np.uint8).reshape(shape), message.geometry)


def _arrays_of(output: RawOutput) -> tuple[str, list[npt.NDArray[Any]]]:
    """An output as its kind and its arrays."""
    match output:
        case ClassifyOutput():
            return "classify", [output.indices, output.scores]
        case DetectOutput():
            arrays: list[npt.NDArray[Any]] = [output.boxes, output.scores, output.classes]
            return "detect", arrays if output.mask_logits is None else [*arrays, output.mask_logits]
        case SegmentOutput():
            return "segment", [output.label_map]


def answer_of(
    job: int, output: RawOutput, queue_s: float, infer_s: float, batch_images: int, outlook: Outlook
) -> tuple[Answer, list[memoryview]]:
    """The message that answers a job, and the frames that go with it: none where the output is small, for each of them
    costs about as much as the message itself."""
    kind, arrays = _arrays_of(output)
    specs = tuple([ArraySpec(array.dtype.str, array.shape) for array in arrays])
    small = sum([array.nbytes for array in arrays]) <= INLINE_BYTES
    inline = tuple([array.tobytes() for array in arrays]) if small else ()
    answer = Answer(job, kind, specs, inline, queue_s, infer_s, batch_images, outlook)
    return answer, [] if small else [array.data for array in arrays]


def output_from_frames(answer: Answer, frames: Iterator[memoryview]) -> RawOutput:
    """The output that an Answer carries, taking from `frames` those that are its own; its arrays are views on them.

    Raises:
        MalformedMessage: frames and header do not fit each other.
    """
    parts: Iterable[bytes | memoryview] = answer.inline or itertools.islice(frames, len(answer.arrays))
    try:
        arrays: list[npt.NDArray[Any]] = [
            np.frombuffer(part, np.dtype(spec.dtype)).reshape(spec.shape)
            for spec, part in zip(answer.arrays, parts, strict=True)
        ]
        match answer.kind:
            case "classify":
                indices, scores = arrays
                return ClassifyOutput(indices, scores)
            case "detect":
                boxes, scores, classes, *masks = arrays
                return DetectOutput(boxes, scores, classes, masks[0] if masks else None)
            case "segment":
                (label_map,) = arrays
                return SegmentOutput(label_map)
    except (ValueError, TypeError) as error:
        raise MalformedMessage(f"an answer's frames do not fit its header: {error}") from error
    raise MalformedMessage(f"unknown kind of answer {answer.kind!r}")
