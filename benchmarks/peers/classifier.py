"""What every peer serves: the same network and the same pictures.

With the network `eager` Pillow decodes pictures. With this project's networks this project's decoder does, so that only
the serving differs.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import PIL.Image
from typing_extensions import TypedDict  # pydantic, which some peers use for answers, needs this one before Python 3.12

from model.spec import Preprocessing
from model.types import Geometry, QueryParams, Size, UInt8Array

PARAMS = QueryParams(top_k=5)
NOOP = "noop"
TIMED = "timed"
IMAGE_MS = "BENCH_IMAGE_MS"
"""Environment variable: milliseconds of the device of `TIMED` for an image."""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Read from the environment.

    `network`: a `Kind`; or `noop`: neither decoding nor a network; or `timed`: real decoding, and a sleep.
    """

    port: int
    network: str
    material: Path
    workers: int
    threads: int
    batch: int
    wait_ms: float

    @classmethod
    def from_environment(cls) -> Self:
        return cls(
            port=int(os.environ["BENCH_PORT"]),
            network=os.environ["BENCH_NETWORK"],
            material=Path(os.environ["BENCH_MATERIAL"]),
            workers=int(os.environ["BENCH_WORKERS"]),
            threads=int(os.environ["BENCH_THREADS"]),
            batch=int(os.environ["BENCH_BATCH"]),
            wait_ms=float(os.environ["BENCH_WAIT_MS"]),
        )


class Classes(TypedDict):
    """The best classes of one picture, the best first."""

    indices: list[int]
    scores: list[float]


NO_CLASSES: Classes = {"indices": [0, 1, 2, 3, 4], "scores": [0.2] * 5}


class Classifier:
    """One copy of the network, for one process, in any thread."""

    def __init__(self, settings: PeerSettings, *, decodes_only: bool = False) -> None:
        self._network = settings.network
        if settings.network == NOOP:
            return
        from benchmarks.material import PREPROCESSING, Material

        if settings.network == TIMED:
            self._preprocessing: Preprocessing = PREPROCESSING
            return

        material = Material(settings.material)
        bundle = material.bundle
        self._preprocessing = bundle.config.preprocessing
        if decodes_only:
            return
        import torch

        from benchmarks.network import Kind, load, precision_of

        torch.set_num_threads(settings.threads)
        self._threads = settings.threads
        self._predictor = load(precision_of(Kind(settings.network), material.fastest_precision()), bundle)
        for images in (1, settings.batch):
            self.classify([np.zeros((224, 224, 3), np.uint8)] * images)

    def decode(self, jpeg: bytes) -> UInt8Array:
        """Encoded bytes to a network input, uint8 (224, 224, 3) RGB; of a no-op one pixel."""
        if self._network == NOOP:
            return np.zeros((1, 1, 3), np.uint8)
        if self._network != "eager":
            from benchmarks.material import network_input

            return network_input(jpeg, self._preprocessing).pixels
        picture = PIL.Image.open(io.BytesIO(jpeg)).convert("RGB")
        scale = 248 / min(picture.size)
        width, height = round(picture.width * scale), round(picture.height * scale)
        left, top = (width - 224) // 2, (height - 224) // 2
        resized = picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
        return np.asarray(resized.crop((left, top, left + 224, top + 224)))

    def classify(self, inputs: Sequence[UInt8Array]) -> list[Classes]:
        """For each input its five best classes."""
        if self._network == NOOP:
            return [NO_CLASSES for _ in inputs]
        if self._network == TIMED:
            time.sleep(len(inputs) * float(os.environ[IMAGE_MS]) / 1000)
            return [NO_CLASSES for _ in inputs]
        import torch

        from model.types import Batch, ClassifyOutput

        torch.set_num_threads(self._threads)  # OpenMP keeps a number for each calling thread
        geometry = Geometry(Size(224, 224), Size(224, 224))
        batch = Batch(np.stack(inputs), (geometry,) * len(inputs), (PARAMS,) * len(inputs))
        rows = [row for row in self._predictor.predict(batch) if isinstance(row, ClassifyOutput)]
        return [{"indices": row.indices.tolist(), "scores": row.scores.tolist()} for row in rows]
