"""Every message between a front-end and a worker: a typed header (MessagePack), then large arrays' bytes as frames.

    front-end → worker   Hello · Predict + [uint8 (h, w, 3)] · ListStore · Load · Unload · Cancel
    worker → front-end   State · Answers [+ one frame an array] · Store · Failure

A job's number is its front-end's own count, over all that can be answered or cancelled; the worker tells
front-ends apart by their socket identity. A model's version names one state of its config, weights included, the same
on every worker: front-ends hear each config once, and what they send was made for the version that they say.
Durations, never points in time, cross: the two ends may be on hosts with different clocks.

Arrays on the wire: the input of a Predict, the output of an Answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from model.types import ClassifyOutput, DetectOutput, Geometry, ModelInput, QueryParams, RawOutput, SegmentOutput
from service.types import StoredModel

PROTOCOL = 5
"""Both ends of a channel must speak the same; raised with every change to this file's messages."""

MODEL_CONTROL_OFF = (
    "this service does not let callers load or unload models; its operator can allow it with the setting model_control"
)


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all headers."""


class Hello(Message, frozen=True, tag="hello"):
    """Asks for a State; sent at every heartbeat. `knows` are the versions whose configs the front-end has already."""

    protocol: int
    knows: tuple[str, ...]


class Predict(Message, frozen=True, tag="predict"):
    job: int
    request_id: str
    model: str
    version: str
    """What the input was made for; another version would take it for something else."""
    height: int
    width: int
    geometry: Geometry
    params: QueryParams
    budget_s: float
    """What is left until the caller's deadline."""
    traceparent: str = ""
    """Of the request's span, where its trace is recorded (W3C Trace Context); so is `tracestate`."""
    tracestate: str = ""


class ListStore(Message, frozen=True, tag="list-store"):
    """Asks for the Store."""

    job: int
    budget_s: float


class Load(Message, frozen=True, tag="load"):
    """Asks for a model to be served; answered with the Store once it is ready, after the State that tells so."""

    job: int
    budget_s: float
    model: str


class Unload(Message, frozen=True, tag="unload"):
    """Asks for a model to be served no more; answered with the Store once its memory is free."""

    job: int
    budget_s: float
    model: str


class Cancel(Message, frozen=True, tag="cancel"):
    job: int


class ModelState(Message, frozen=True):
    name: str
    version: str
    ready: bool
    device: str
    precision: str


class State(Message, frozen=True, tag="state"):
    """What the worker is doing: in answer to Hello, and by itself whenever something changed.

    `models` are those that are served, in order; `configs` has, by version, the configs as JSON that the front-end
    does not have. `silent_s` is for how long the device has not answered: seconds, or the time of the batch that runs.
    """

    instance: str
    phase: Phase
    reason: str
    retry_after_s: float
    models: tuple[ModelState, ...]
    configs: dict[str, str]
    silent_s: float = 0.0


class ArraySpec(Message, frozen=True):
    dtype: str
    shape: tuple[int, ...]


class WaitEstimate(Message, frozen=True):
    """What one more job like an answered one, due in as many seconds as that one was, would find if it came now."""

    answered_s: float
    """Seconds until it would be answered."""
    image_s: float
    """By how much it would delay the next one."""


class Answer(Message, frozen=True):
    """One row of a batch of `batch_images`; `kind` names the output type, `arrays` describe what it is made of.

    Their bytes are `inline` where they are few, else in the frames that follow.
    """

    job: int
    kind: str
    arrays: tuple[ArraySpec, ...]
    inline: tuple[bytes, ...]
    queue_s: float
    infer_s: float
    batch_images: int
    outlook: WaitEstimate


class Answers(Message, frozen=True, tag="answers"):
    """What a batch brought to one front-end: one message, for each costs far more than an answer in it."""

    answers: tuple[Answer, ...]


class Store(Message, frozen=True, tag="store"):
    """Everything that the worker has on disk or serves, by name."""

    job: int
    models: tuple[StoredModel, ...]


class Failure(Message, frozen=True, tag="failure"):
    job: int
    code: str
    detail: str
    retry_after_s: float | None


ControlRequest = ListStore | Load | Unload
ToWorker = Hello | Predict | ControlRequest | Cancel
ToFrontEnd = State | Answers | Store | Failure

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_to_front_end = msgspec.msgpack.Decoder(ToFrontEnd)


class MalformedMessage(Exception):
    """The other end does not speak this protocol."""


def encode(message: ToWorker | ToFrontEnd) -> bytes:
    return _encoder.encode(message)


def decode_to_worker(header: bytes | memoryview) -> ToWorker:
    """Raises MalformedMessage."""
    message: ToWorker = _decode(_to_worker, header)
    if isinstance(message, Hello) and message.protocol != PROTOCOL:
        raise MalformedMessage(f"a front-end speaks protocol {message.protocol}, this worker {PROTOCOL}")
    return message


def decode_to_front_end(header: bytes | memoryview) -> ToFrontEnd:
    """Raises MalformedMessage."""
    message: ToFrontEnd = _decode(_to_front_end, header)
    return message


def _decode(decoder: msgspec.msgpack.Decoder[Any], header: bytes | memoryview) -> Any:  # noqa: ANN401  (typed by its callers)
    try:
        return decoder.decode(header)
    except msgspec.DecodeError as error:
        raise MalformedMessage(str(error)) from error


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
    job: int, output: RawOutput, queue_s: float, infer_s: float, batch_images: int, outlook: WaitEstimate
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
