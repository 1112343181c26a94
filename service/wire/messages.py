"""Every message between a front-end and a worker: a typed header (MessagePack), then raw array bytes as frames.

    front-end → worker   Hello · Predict + [uint8 (h, w, 3)] · Cancel
    worker → front-end   State · Answer + [one frame an array] · Failure

A job's number is its front-end's own count; the worker tells front-ends apart by their socket identity.
Durations, never points in time, cross: the two ends may be on hosts with different clocks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from model.types import (
    ClassifyOutput,
    DetectOutput,
    Geometry,
    ModelInput,
    QueryParams,
    RawOutput,
    SegmentOutput,
)

PROTOCOL = 1
"""Both ends of a channel must speak the same; raised with every change to this file's messages."""


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all headers."""


class Hello(Message, frozen=True, tag="hello"):
    """Asks for a State; sent at every heartbeat. `knows` is the catalogue that the front-end has already."""

    protocol: int
    knows: str | None


class Predict(Message, frozen=True, tag="predict"):
    job: int
    request_id: str
    model: str
    height: int
    width: int
    geometry: Geometry
    params: QueryParams
    budget_s: float
    """What is left until the caller's deadline."""


class Cancel(Message, frozen=True, tag="cancel"):
    job: int


class ModelState(Message, frozen=True):
    name: str
    ready: bool
    device: str
    precision: str


class State(Message, frozen=True, tag="state"):
    """What the worker is doing. `catalogue` is the bundles' configs as JSON, left out for whoever has them."""

    instance: str
    phase: Phase
    reason: str
    retry_after_s: float
    models: tuple[ModelState, ...]
    catalogue: tuple[str, ...] | None


class ArraySpec(Message, frozen=True):
    dtype: str
    shape: tuple[int, ...]


class Answer(Message, frozen=True, tag="answer"):
    """One row of a batch; `kind` names the output type, `arrays` describe the frames that follow."""

    job: int
    kind: str
    arrays: tuple[ArraySpec, ...]
    queue_s: float
    infer_s: float


class Failure(Message, frozen=True, tag="failure"):
    job: int
    code: str
    detail: str
    retry_after_s: float | None


ToWorker = Hello | Predict | Cancel
ToFrontEnd = State | Answer | Failure

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_to_front_end = msgspec.msgpack.Decoder(ToFrontEnd)


class MalformedMessage(Exception):
    """The other end does not speak this protocol."""


def encode(message: ToWorker | ToFrontEnd) -> bytes:
    return _encoder.encode(message)


def decode_to_worker(header: bytes) -> ToWorker:
    """Raises MalformedMessage."""
    message: ToWorker = _decode(_to_worker, header)
    if isinstance(message, Hello) and message.protocol != PROTOCOL:
        raise MalformedMessage(f"a front-end speaks protocol {message.protocol}, this worker {PROTOCOL}")
    return message


def decode_to_front_end(header: bytes) -> ToFrontEnd:
    """Raises MalformedMessage."""
    message: ToFrontEnd = _decode(_to_front_end, header)
    return message


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


def frames_of(output: RawOutput) -> tuple[str, list[npt.NDArray[Any]]]:
    """An output as its kind and its arrays."""
    match output:
        case ClassifyOutput():
            return "classify", [output.indices, output.scores]
        case DetectOutput():
            arrays: list[npt.NDArray[Any]] = [output.boxes, output.scores, output.classes]
            return "detect", arrays if output.mask_logits is None else [*arrays, output.mask_logits]
        case SegmentOutput():
            return "segment", [output.label_map]


def describe(arrays: list[npt.NDArray[Any]]) -> tuple[ArraySpec, ...]:
    return tuple(ArraySpec(array.dtype.str, array.shape) for array in arrays)


def output_from_frames(answer: Answer, frames: list[memoryview]) -> RawOutput:
    """The output that an Answer carries; its arrays are views on the frames.

    Raises:
        MalformedMessage: frames and header do not fit each other.
    """
    try:
        arrays: list[npt.NDArray[Any]] = [
            np.frombuffer(frame, np.dtype(spec.dtype)).reshape(spec.shape)
            for spec, frame in zip(answer.arrays, frames, strict=True)
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


def _decode(decoder: msgspec.msgpack.Decoder[Any], header: bytes) -> Any:  # noqa: ANN401  (typed by its callers)
    try:
        return decoder.decode(header)
    except msgspec.DecodeError as error:
        raise MalformedMessage(str(error)) from error
