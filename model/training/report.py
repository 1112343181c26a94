"""Metrics of finished bundles on the held-out photographs, and the classifier's confusion matrix as an image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from model.bundle import BundleConfig, read_bundle
from model.predictor import Predictor
from model.training.data import SPECIES, Record, read_index
from model.training.evaluate import class_probabilities, measure
from model.training.recipes import RECIPES
from model.types import IntArray, Task

logger = logging.getLogger(__name__)

CELL, MARGIN, LINE = 22, 190, 24
INK, PAPER, RULE = (30, 30, 30), (255, 255, 255), (200, 120, 60)


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
            draw_confusion(breed_confusion(predictor, bundle.config, held_out), bundle.config, held_out).save(picture)
    if not figures:
        raise ValueError(f"{store} has none of the bundles that the recipes make; train one first")
    return figures


def breed_confusion(predictor: Predictor, config: BundleConfig, records: Sequence[Record]) -> IntArray:
    """Confusion matrix of photographs, [truth, top label]: int64 (classes, classes)."""
    best = class_probabilities(predictor, config, records).argmax(axis=1)
    confusion = np.zeros((len(config.labels), len(config.labels)), np.int64)
    np.add.at(confusion, ([record.breed for record in records], best), 1)
    return confusion


def draw_confusion(confusion: IntArray, config: BundleConfig, records: Sequence[Record]) -> Image.Image:
    """The confusion matrix: true breeds in rows, answers in columns, cats first; darker: a larger share of the row."""
    kinds = {record.breed: record.species for record in records}
    order = sorted(kinds, key=lambda breed: (kinds[breed], config.labels[breed].lower()))
    names = [config.labels[breed] for breed in order]
    counts = confusion[np.ix_(order, order)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = CELL * len(order)
    image = Image.new("RGB", (MARGIN + side + LINE, MARGIN + side + LINE), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    for row, name in enumerate(names):
        middle = MARGIN + CELL * row + CELL // 2
        draw.text((MARGIN - 6, middle), name, INK, font, anchor="rm")
        for column in range(len(order)):
            left, top = MARGIN + CELL * column, MARGIN + CELL * row
            grey = round(255 - 215 * float(shares[row, column]))
            draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), (grey, grey, 255), (235, 235, 235))
            if counts[row, column]:
                ink = PAPER if grey < 128 else INK
                draw.text((left + CELL // 2, middle), str(counts[row, column]), ink, font, anchor="mm")
    headings = Image.new("RGB", (MARGIN, side), PAPER)
    sideways = ImageDraw.Draw(headings)
    for row, name in enumerate(names):
        sideways.text((6, CELL * row + CELL // 2), name, INK, font, anchor="lm")
    image.paste(headings.rotate(90, expand=True), (MARGIN, 0))
    edge = MARGIN + CELL * sum(kinds[breed] == SPECIES.index("cat") for breed in order)
    draw.line((MARGIN, edge, MARGIN + side, edge), RULE, 2)
    draw.line((edge, MARGIN, edge, MARGIN + side), RULE, 2)
    draw.text((6, 6), "true breed in rows,\nanswer in columns;\ncats above the line", INK, font)
    return image
