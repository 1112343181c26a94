"""BentoML: a service that decodes, and one that runs batches, a worker for each copy of the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import ContentType

from benchmarks.peers.classifier import Classes, Classifier, PeerSettings

settings = PeerSettings.from_environment()
GOAL_MS = 30_000
"""Latency in ms beyond which BentoML refuses requests: a bound here, not a goal."""


@bentoml.service(workers=settings.workers, traffic={"timeout": 60})
class Network:
    def __init__(self) -> None:
        self.classifier = Classifier(settings)

    @bentoml.api(batchable=True, max_batch_size=settings.batch, max_latency_ms=GOAL_MS)
    def classify(self, inputs: np.ndarray) -> list[Classes]:
        return self.classifier.classify(list(inputs))


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class ConvMLP:
    network = bentoml.depends(Network)

    def __init__(self) -> None:
        self.classifier = Classifier(settings, decodes_only=True)

    @bentoml.api
    async def predict(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> Classes:
        pixels = self.classifier.decode(image.read_bytes())
        return (await self.network.to_async.classify(pixels[None]))[0]


if __name__ == "__main__":
    command = [str(Path(sys.executable).parent / "bentoml"), "serve", "benchmarks.peers.bento_service:ConvMLP"]
    command += ["--host", "127.0.0.1", "--port", str(settings.port), "-q"]
    os.execv(command[0], command)
