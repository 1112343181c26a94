"""The worker of `benchmarks.noop` with inputs of 224 x 224, and a device that takes a fixed time for each image.

It is run as a file, and takes `benchmarks.noop`, `tests.fakes` and the service from PYTHONPATH: so it works with
revisions that are older than itself.
"""

from __future__ import annotations

import os
import time

from benchmarks import noop
from model.spec import CenterCropSpec
from model.types import Batch
from service.worker.runner import Outputs
from tests import fakes

IMAGE_MS = "BENCH_IMAGE_MS"
"""Environment variable: milliseconds of the device for an image. As in `benchmarks.peers.classifier`."""


class TimedRunner(noop.NoRunner):
    """Takes its time, during which other threads run as they do beside a GPU."""

    def run(self, slot: str, batch: Batch, lanes: int) -> Outputs:
        time.sleep(len(batch.geometries) * float(os.environ[IMAGE_MS]) / 1000)
        return super().run(slot, batch, lanes)


def published_size(*, resize_shorter: int, crop: int) -> CenterCropSpec:  # noqa: ARG001
    """The preprocessing of the published classifiers, whatever that of a fake one is."""
    return CenterCropSpec()


if __name__ == "__main__":
    fakes.CenterCropSpec = published_size  # type: ignore[assignment, attr-defined]
    noop.NoRunner = TimedRunner  # type: ignore[misc]
    noop.main()
