"""What travels through a front-end: a request for one image, and its reply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from model.bundle import BundleConfig
from model.types import Image, QueryParams, Size, Task

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """One image, encoded or decoded already, and what is asked of it. `deadline_s` is on the clock of
    `time.monotonic`."""

    id: str
    task: Task
    model: str | None
    image: bytes | Image
    params: QueryParams
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a request spent in each stage; the rest of its total is transport."""

    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    post: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """The answer for one image. `payload` is what the caller's `encode` made of the result; `batch_images` ran with it,
    itself among them."""

    id: str
    model: str
    weights_sha256: str
    size: Size
    payload: T
    timings: Timings
    batch_images: int = 1


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model that is served: its bundle's config, and whether it has proven itself on a worker. `version` names this
    state of it, weights included, on every worker; `devices` has one for each worker that answers for it."""

    config: BundleConfig
    version: str
    ready: bool
    devices: tuple[str, ...]
    precision: str

    @property
    def device(self) -> str:
        """In words: `cpu`, or `cuda:0, cuda:1`."""
        return ", ".join(dict.fromkeys(self.devices))


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model of the worker's store. `reason` says, in words for a caller, why it does not answer; else it is empty."""

    name: str
    served: bool
    ready: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether predictions are answered now; `reason` says why not, in words for a caller."""

    ready: bool
    reason: str
    retry_after_s: float = 1.0
