"""Metrics and cost of finished bundles on the held-out photographs; a classifier's confusion matrix as an image."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from model.bundle import CONFIG_FILE, Bundle, BundleConfig, read_bundle
from model.confusion_picture import draw_confusion
from model.metrics import confusion_matrix
from model.net.normalise import Normalise
from model.precision import Precision, make_predictor
from model.predictor import Predictor, load_network
from model.reference import reference_input, reference_params
from model.training.data import SPECIES, Record, read_index
from model.training.evaluate import class_probabilities, measure
from model.training.recipes import PetsModel
from model.types import Batch, IntArray, Task

logger = logging.getLogger(__name__)

TIMED_ROUNDS = 7


def report(data_dir: Path, store: Path, picture: Path | None) -> dict[str, dict[str, float]]:
    """Measure the bundles in `store` that the recipes make, by name; draw the classifier's confusion to `picture`.

    Raises:
        BundleInvalid: a bundle is not valid.
        OSError: the data cannot be read, or the picture cannot be written.
        ValueError: `store` has none of the bundles, or, with `picture`, not one classifier.
    """
    held_out = read_index(data_dir).held_out()
    endings = [f"_pets_{kind.value}" for kind in PetsModel]
    folders = [path.parent for ending in endings for path in sorted(store.glob(f"*{ending}/{CONFIG_FILE}"))]
    bundles = [read_bundle(folder) for folder in folders]
    if not bundles:
        raise ValueError(f"{store} has none of the bundles that the recipes make; train one first")
    classifiers = [bundle for bundle in bundles if bundle.config.task is Task.CLASSIFY]
    if picture is not None and len(classifiers) != 1:
        names = ", ".join(bundle.config.name for bundle in classifiers) or "none"
        raise ValueError(f"a picture of the confusion needs one classifier in {store}; it has {names}")
    figures = {}
    for bundle in bundles:
        config = bundle.config
        predictor = Predictor(bundle, torch.device("cpu"))
        logger.info("measuring %s on %d held-out photographs", config.name, len(held_out))
        figures[config.name] = measure(predictor, config, held_out) | cost(bundle)
        if picture is not None and config.task is Task.CLASSIFY:
            draw_breeds(breed_confusion(predictor, config, held_out), config, held_out).save(picture)
    return figures


def cost(bundle: Bundle) -> dict[str, float]:
    """Parameters in millions; GMACs of one picture, in the form that is served; its speed in fp32 on this CPU.

    The picture has the size of the reference picture's input. The speed is that of the network, in CPU time, whose
    least of `TIMED_ROUNDS` other programs disturb the least.
    """
    config, cpu = bundle.config, torch.device("cpu")
    network = load_network(bundle).requires_grad_(False)  # the counter would look for gradients of arguments
    parameters = sum(parameter.numel() for parameter in network.parameters())
    model_input = reference_input(config.preprocessing)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(Normalise(config.preprocessing)(torch.tensor(model_input.pixels)[None]))
    predictor = make_predictor(bundle, cpu, Precision.FP32, network)
    batch = Batch(np.stack([model_input.pixels]), (model_input.geometry,), (reference_params(config.task),))
    seconds = []
    for _ in range(TIMED_ROUNDS):
        began = time.process_time()
        predictor.predict(batch)
        seconds.append(time.process_time() - began)
    return {
        "parameters_millions": parameters / 1e6,
        "gmacs": counter.get_total_flops() / 2e9,
        "images_per_cpu_second": 1 / min(seconds),
    }


def breed_confusion(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> IntArray:
    """Confusion matrix of photographs, [truth, top label]: int64 (classes, classes)."""
    best = class_probabilities(predictor, config, records).argmax(axis=1)
    return confusion_matrix(np.array([record.label for record in records]), best, len(config.labels))


def draw_breeds(confusion: IntArray, config: BundleConfig, records: Sequence[Record]) -> Image.Image:
    """The confusion matrix with cats first."""
    kinds = {record.label: record.species for record in records}
    order = sorted(kinds, key=lambda breed: (kinds[breed], config.labels[breed].lower()))
    return draw_confusion(
        confusion[np.ix_(order, order)],
        [config.labels[breed] for breed in order],
        "true breed in rows,\nanswer in columns;\ncats above the line",
        divider=sum(kinds[breed] == SPECIES.index("cat") for breed in order),
    )
