"""Every message between a front-end and a worker: a typed header (MessagePack), then large arrays' bytes as frames.

    front-end → worker   Hello · Predicts + [uint8 (h, w, 3) for each] · ListStore · Load · Unload · SetSplit · Cancel
    worker → front-end   State · Answers + [one frame for each large array] · Store · ProtocolMismatch

A message costs far more than a job in it: it wakes a thread on both sides. So one Predicts carries all jobs of one
iteration of the front-end's event loop, and one Answers all that ended in one of the worker's.

Each front-end numbers its own jobs: requests that can be answered or cancelled. The worker identifies a front-end by
its socket identity. A model's version names one state of its config, weights included; it is the same on every worker.
Each config is sent to a front-end once, and a Predict names the version that its input was made for. Messages carry
durations, never points in time: the two ends may run on hosts with different clocks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from model.types import (
    ClassifyOutput,
    DetectOutput,
    EmbedOutput,
    Geometry,
    LogitsOutput,
    ModelInput,
    QueryParams,
    RawOutput,
    SegmentOutput,
)
from service.types import StoredModel

PROTOCOL = 12
"""Both ends must speak the same; raised with every change to the messages of this file. All versions share only
the field `protocol` of a Hello, and ProtocolMismatch: so two ends of different versions can name them."""

UPDATE_BOTH = "update both to the same version"

JOBS_TOGETHER = 16
BYTES_TOGETHER = 1 << 20
"""Jobs, and bytes of their inputs, in one Predicts: a worker begins with the first only when the last has arrived."""

INLINE_BYTES = 4096
"""An array of no more bytes travels in the header: a frame costs about as much as the message itself."""


class MalformedMessage(Exception):
    """The other end does not speak this protocol."""


class OtherProtocol(MalformedMessage):
    """A front-end greets with another protocol."""

    def __init__(self, protocol: int) -> None:
        super().__init__(f"a front-end speaks protocol {protocol}, this worker {PROTOCOL}; {UPDATE_BOTH}")


class Phase(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all headers."""


class Hello(Message, frozen=True, tag="hello"):
    """Asks for a State; sent at every heartbeat. `knows`: the versions whose configs the front-end has."""

    protocol: int
    knows: tuple[str, ...]


class HelloOfAnyProtocol(msgspec.Struct, frozen=True, tag="hello"):
    """What a Hello has in all versions."""

    protocol: int


class Predict(Message, frozen=True, array_like=True):
    """Asks for an Answer. Its one frame is the network input, uint8 (height, width, 3), RGB."""

    job: int
    request_id: str
    model: str
    version: str
    """The model version that the input was made for; another version may preprocess differently."""
    height: int
    width: int
    geometry: Geometry
    params: QueryParams
    budget_s: float
    """Seconds until the caller's deadline."""
    traceparent: str = ""
    """W3C Trace Context of the request's span, like `tracestate`; empty where the request is not traced."""
    tracestate: str = ""


class Predicts(Message, frozen=True, tag="predicts"):
    """Jobs of one front-end, with a frame for each, in their order."""

    predicts: tuple[Predict, ...]


class ListStore(Message, frozen=True, tag="list-store"):
    """Asks for the Store."""

    job: int
    budget_s: float


class Load(Message, frozen=True, tag="load"):
    """Asks for a model to be served. The Store answers it once the model is ready, after the State that has it."""

    job: int
    budget_s: float
    model: str


class Unload(Message, frozen=True, tag="unload"):
    """Asks for a model to be unloaded. The Store answers it once the model's memory is free."""

    job: int
    budget_s: float
    model: str


class SetSplit(Message, frozen=True, tag="set-split"):
    """Asks for the split of a name among its served versions. The Store answers it, after the State that has it.

    An empty split removes the name's own: its first served version answers all requests.
    """

    job: int
    budget_s: float
    model: str
    split: dict[str, float]


class Cancel(Message, frozen=True, tag="cancel"):
    job: int


class ModelState(Message, frozen=True):
    """A served model. `form` and `form_difference`: as `model.types.Deployment` has them. `accuracy`: the JSON of its
    figures, which may change under one version; empty if it was not measured."""

    name: str
    version: str
    ready: bool
    device: str
    precision: str
    form: Literal["trained", "deploy"] = "trained"
    form_difference: float | None = None
    accuracy: str = ""


class State(Message, frozen=True, tag="state"):
    """The state of a worker: answers a Hello, and is sent to all front-ends whenever it changes.

    `models` are the served ones, in order. `configs` has, by version, the JSON configs that the front-end lacks.
    `retry_after_s`: expected seconds until the worker has finished everything that it runs or queues now; while it
    starts, until it is ready. `silent_s`: seconds since the device last answered, or since the oldest running batch
    started. `start_s`: seconds that a start takes, from the process's start until it is ready; 0 where that is unknown.
    `splits` are by model name.
    """

    instance: str
    phase: Phase
    reason: str
    retry_after_s: float
    models: tuple[ModelState, ...]
    configs: dict[str, str]
    silent_s: float = 0.0
    start_s: float = 0.0
    splits: dict[str, dict[str, float]] = {}

    @property
    def shown(self) -> tuple[object, ...]:
        """What front-ends show of it."""
        return self.phase, self.models, self.splits


class Array(Message, frozen=True, array_like=True):
    """One array of an output: its dtype as numpy writes it, its shape, its bytes. `data` None: the bytes are in the
    next frame."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | None = None


class WaitEstimate(Message, frozen=True, array_like=True):
    """The expected wait of another request of the answered one's shape and budget, if it arrived now."""

    answered_s: float
    """Seconds until it would be answered."""
    image_s: float
    """Seconds by which it would delay the next one."""


class Answer(Message, frozen=True, array_like=True):
    """One row of a batch of `batch_images`. `kind` names the output type, `arrays` are its fields in order. `precision`
    is what the network computed in. `estimate` is None where a later answer of the same batch has it."""

    job: int
    kind: str
    arrays: tuple[Array, ...]
    queue_s: float
    infer_s: float
    batch_images: int
    estimate: WaitEstimate | None
    precision: str = ""


class Failure(Message, frozen=True, array_like=True):
    """The domain error that a job is answered with. `retry_after_s` is None where trying again does not help."""

    job: int
    code: str
    detail: str
    retry_after_s: float | None


class Answers(Message, frozen=True, tag="answers"):
    """What the jobs of one front-end were answered with. The frames belong to `answers`, in their order."""

    answers: tuple[Answer, ...]
    failures: tuple[Failure, ...] = ()


class Store(Message, frozen=True, tag="store"):
    """All models that the worker has on disk or serves, sorted by name."""

    job: int
    models: tuple[StoredModel, ...]


class ProtocolMismatch(msgspec.Struct, frozen=True, tag="protocol-mismatch"):
    """Answers a Hello of another protocol; `protocol` is the worker's."""

    protocol: int


ControlRequest = ListStore | Load | Unload | SetSplit
ToWorker = Hello | Predicts | ControlRequest | Cancel
ToFrontEnd = State | Answers | Store | ProtocolMismatch

encode: Callable[[ToWorker | ToFrontEnd], bytes] = msgspec.msgpack.Encoder().encode
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_hello_of_any_protocol = msgspec.msgpack.Decoder(HelloOfAnyProtocol)
_to_front_end = msgspec.msgpack.Decoder(ToFrontEnd)


def gather_jobs(jobs: Sequence[tuple[Predict, memoryview]]) -> list[tuple[Predicts, Sequence[memoryview]]]:
    """The messages that carry these jobs and their inputs, within `JOBS_TOGETHER` and `BYTES_TOGETHER`."""
    messages: list[tuple[Predicts, Sequence[memoryview]]] = []
    start = 0
    while start < len(jobs):
        predicts: list[Predict] = []
        inputs: list[memoryview] = []
        nbytes = 0
        for predict, pixels in jobs[start : start + JOBS_TOGETHER]:
            nbytes += pixels.nbytes
            if predicts and nbytes > BYTES_TOGETHER:
                break
            predicts.append(predict)
            inputs.append(pixels)
        start += len(predicts)
        messages.append((Predicts(tuple(predicts)), inputs))
    return messages


def decode_to_worker(header: bytes | memoryview) -> ToWorker:
    """Raises MalformedMessage, OtherProtocol."""
    try:
        message: ToWorker = _to_worker.decode(header)
    except msgspec.DecodeError as error:
        _check_protocol(header)
        raise MalformedMessage(str(error)) from error
    if isinstance(message, Hello) and message.protocol != PROTOCOL:
        raise OtherProtocol(message.protocol)
    return message


def _check_protocol(header: bytes | memoryview) -> None:
    """Raises OtherProtocol for a Hello of another version, whatever else it contains."""
    with contextlib.suppress(msgspec.DecodeError):
        hello = _hello_of_any_protocol.decode(header)
        if hello.protocol != PROTOCOL:
            raise OtherProtocol(hello.protocol)


def decode_to_front_end(header: bytes | memoryview) -> ToFrontEnd:
    """Raises MalformedMessage."""
    try:
        message: ToFrontEnd = _to_front_end.decode(header)
    except msgspec.DecodeError as error:
        raise MalformedMessage(str(error)) from error
    return message


def input_from_frames(message: Predict, frames: Sequence[memoryview]) -> ModelInput:
    """The network input that a Predict carries: a view on its one frame, not a copy.

    Raises:
        MalformedMessage: the frames do not fit the header.
    """
    height, width = message.height, message.width
    if len(frames) != 1 or height < 1 or width < 1 or len(frames[0]) != height * width * 3:
        sizes = [len(frame) for frame in frames]
        raise MalformedMessage(f"a uint8 array of shape {(height, width, 3)} was announced, {sizes} bytes arrived")
    return ModelInput(np.frombuffer(frames[0], np.uint8).reshape(height, width, 3), message.geometry)


def pack_output(output: RawOutput) -> tuple[str, tuple[Array, ...], list[memoryview]]:
    """An output as its kind, its arrays, and the frames of those that are not inline."""
    values: list[npt.NDArray[Any]]
    match output:
        case ClassifyOutput():
            kind, values = "classify", [output.indices, output.scores]
        case EmbedOutput():
            kind, values = "embed", [output.embedding]
        case DetectOutput():
            kind, values = "detect", [output.boxes, output.scores, output.classes]
            if output.mask_logits is not None:
                values.append(output.mask_logits)
        case SegmentOutput():
            kind, values = "segment", [output.label_map, output.areas, output.confidences]
            if output.confidence_map is not None:
                values.append(output.confidence_map)
        case LogitsOutput():
            kind, values = "logits", [output.logits, output.classes]
            if output.rest is not None:
                values.append(output.rest)
    arrays: list[Array] = []
    frames: list[memoryview] = []
    for value in values:
        if value.nbytes <= INLINE_BYTES:
            arrays.append(Array(value.dtype.str, value.shape, value.tobytes()))
        else:
            arrays.append(Array(value.dtype.str, value.shape))
            frames.append(value.data)
    return kind, tuple(arrays), frames


def unpack_output(answer: Answer, frames: Iterator[memoryview]) -> RawOutput:
    """The output that an Answer carries. It takes its own frames from `frames`; its arrays are views, not copies.

    Raises:
        MalformedMessage: frames and header do not fit each other.
    """
    values: list[npt.NDArray[Any]] = []
    try:
        for array in answer.arrays:
            data = next(frames) if array.data is None else array.data
            values.append(np.frombuffer(data, np.dtype(array.dtype)).reshape(array.shape))
        match answer.kind:
            case "classify":
                indices, scores = values
                return ClassifyOutput(indices, scores)
            case "embed":
                (embedding,) = values
                return EmbedOutput(embedding)
            case "detect":
                boxes, scores, classes, *masks = values
                return DetectOutput(boxes, scores, classes, masks[0] if masks else None)
            case "segment":
                label_map, areas, confidences, *maps = values
                return SegmentOutput(label_map, areas, confidences, maps[0] if maps else None)
            case "logits":
                logits, indices, *rest = values
                return LogitsOutput(logits, indices, rest[0] if rest else None)
    except (ValueError, TypeError, StopIteration) as error:
        raise MalformedMessage(f"an answer's frames do not fit its header: {error}") from error
    raise MalformedMessage(f"unknown kind of answer {answer.kind!r}")
