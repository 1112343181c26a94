"""Types of a front-end: a request for one image, its reply, and the state of models and workers.

Those of each request are structs: to make a frozen dataclass takes ten times as long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from model.bundle import BundleConfig
from model.tiles import Tiling
from model.types import AS_TRAINED, Deployment, Image, QueryParams

T = TypeVar("T")


class PredictRequest(msgspec.Struct, frozen=True):
    """One image, encoded or decoded, and its parameters. `deadline_s` is on the clock of `time.monotonic`. Callers get
    fair shares of the front-end's threads. `classes`: names of the only classes to return; empty: all. `tiling`: how
    the image is cut into windows; None: not at all."""

    id: str
    model: ModelStatus
    image: bytes | Image
    params: QueryParams
    deadline_s: float
    caller: str = ""
    classes: tuple[str, ...] = ()
    tiling: Tiling | None = None


class Timings(msgspec.Struct, frozen=True):
    """Seconds of a request in each stage. The rest of its total is transport."""

    decode: float = 0.0
    queue: float = 0.0
    infer: float = 0.0
    post: float = 0.0


class Reply(msgspec.Struct, Generic[T], frozen=True):
    """The answer for one image. `payload` is the encoded result, `batch_images` the size of its batch, `precision` what
    the network computed in."""

    payload: T
    timings: Timings
    batch_images: int = 1
    precision: str = ""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A served model. `ready`: it gave its committed answer on a worker. `version` identifies config and weights and is
    the same on all workers; `devices` has one entry per worker that serves it."""

    config: BundleConfig
    version: str
    ready: bool
    devices: tuple[str, ...]
    precision: str
    deployment: Deployment = AS_TRAINED

    @property
    def device(self) -> str:
        """Devices as text: `cpu`, or `cuda:0, cuda:1`."""
        return ", ".join(dict.fromkeys(self.devices))


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model of the worker's store. `reason`, for the caller, is why it is not ready; empty if it is."""

    name: str
    served: bool
    ready: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether predictions are answered now; `reason`, for the caller, is why not."""

    ready: bool
    reason: str
    retry_after_s: float = 1.0
