"""Metrics of finished bundles on the held-out photographs, and the classifier's confusion matrix as an image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from model.bundle import BundleConfig, read_bundle
from model.confusion_picture import draw_confusion
from model.metrics import confusion_matrix
from model.predictor import Predictor
from model.training.data import SPECIES, Record, read_index
from model.training.evaluate import class_probabilities, measure
from model.training.recipes import RECIPES
from model.types import IntArray, Task

logger = logging.getLogger(__name__)


def report(data_dir: Path, store: Path, picture: Path | None) -> dict[str, dict[str, float]]:
    """Measure the recipes' bundles in `store`, by name; draw the classifier's confusion matrix to `picture`.

    Raises:
        BundleInvalid: a bundle is not valid.
        OSError: the data cannot be read, or the picture cannot be written.
        ValueError: `store` has none of the bundles.
    """
    held_out = read_index(data_dir).held_out()
    figures = {}
    for name in (recipe.name for recipe in RECIPES.values()):
        if not (store / name).is_dir():
            continue
        bundle = read_bundle(store / name)
        predictor = Predictor(bundle, torch.device("cpu"))
        logger.info("measuring %s on %d held-out photographs", name, len(held_out))
        figures[name] = measure(predictor, bundle.config, held_out)
        if picture is not None and bundle.config.task is Task.CLASSIFY:
            draw_breeds(breed_confusion(predictor, bundle.config, held_out), bundle.config, held_out).save(picture)
    if not figures:
        raise ValueError(f"{store} has none of the bundles that the recipes make; train one first")
    return figures


def breed_confusion(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> IntArray:
    """Confusion matrix of photographs, [truth, top label]: int64 (classes, classes)."""
    best = class_probabilities(predictor, config, records).argmax(axis=1)
    return confusion_matrix(np.array([record.breed for record in records]), best, len(config.labels))


def draw_breeds(confusion: IntArray, config: BundleConfig, records: Sequence[Record]) -> Image.Image:
    """The confusion matrix with cats first."""
    kinds = {record.breed: record.species for record in records}
    order = sorted(kinds, key=lambda breed: (kinds[breed], config.labels[breed].lower()))
    return draw_confusion(
        confusion[np.ix_(order, order)],
        [config.labels[breed] for breed in order],
        "true breed in rows,\nanswer in columns;\ncats above the line",
        sum(kinds[breed] == SPECIES.index("cat") for breed in order),
    )
