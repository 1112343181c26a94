"""Every message between a front-end and a worker: a typed header (MessagePack), then large arrays' bytes as frames.

    front-end → worker   Hello · Predict + [uint8 (h, w, 3)] · ListStore · Load · Unload · Cancel
    worker → front-end   State · Answers [+ one frame an array] · Store · Failure

A job's number is its front-end's own count, over all that can be answered or cancelled; the worker tells
front-ends apart by their socket identity. A model's version names one state of its config, weights included, the same
on every worker: front-ends hear each config once, and what they send was made for the version that they say.
Durations, never points in time, cross: the two ends may be on hosts with different clocks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from model.types import Geometry, QueryParams
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


class Outlook(Message, frozen=True):
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
    outlook: Outlook


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
