"""What workers measure at their first start, written for all services of a run before the first one starts.

A measurement takes half a minute of processor time, is never trusted beside other tests, and so is repeated in every
service that is idle for some seconds. What a worker measures is tested in `service/worker`, its first start in
`test_worker_process.py`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from model.bundle import EMBEDDED_DIR, bundle_names, find_bundle, read_bundle
from model.precision import Precision, candidates_of
from service.settings import Settings, usable_cores
from service.worker.batching import BatchSizeLimits
from service.worker.model_registry import new_model
from service.worker.state_folder import StateFolder
from service.worker.torch_runner import MeasuredPrecision, TorchRunner
from service.worker.tuning import BestBatch
from service.worker.types import Shape

BATCH_IMAGES = 4
"""So that a few requests at once form batches."""
IMAGE_S = 0.05


def keep_measurements(state: Path) -> None:
    """Write to a folder of state what a quiet CPU may measure of the embedded models, for the cores of one worker, of
    each of two, and one."""
    folder, device = StateFolder(state), torch.device("cpu")
    for cores in {1, max(1, usable_cores() // 2), usable_cores()}:
        settings = Settings(device="cpu", compute_threads=cores)
        limits = BatchSizeLimits(settings.max_batch_images, settings.max_batch_mpx * 10**6)
        identity = TorchRunner((), settings).identity
        for name in bundle_names(None):
            bundle = read_bundle(find_bundle(name, EMBEDDED_DIR))
            model = new_model(bundle)
            height, width, _ = model.reference.pixels.shape
            most = limits.configured(Shape(name, model.slot, height, width))
            precisions = candidates_of(bundle, device)
            fastest = MeasuredPrecision(precisions[-1], spread=0.0, load=0.0)
            folder.write("precision", (model.version, *identity), fastest)
            best = BestBatch(BATCH_IMAGES, BATCH_IMAGES * IMAGE_S, whole=True, lanes=1)
            for precision in (Precision.EXACT, *precisions):
                folder.write("batch", (model.version, precision.value, f"at most {most} images", *identity), best)
