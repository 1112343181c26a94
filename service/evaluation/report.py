"""What a run reports: tables, JSON, a picture of the confusion, and the entry of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from model.bundle import Accuracy
from model.confusion_picture import draw_confusion
from model.types import IntArray, Task
from service.evaluation.dataset import Dataset
from service.evaluation.figures import Figures
from service.evaluation.predictions import Manifest, ModelIdentity

CLASS_METRICS = ("box_ap_", "mask_ap_", "ap50_", "ap_", "iou_")
"""How the names of a single class's metrics begin."""
MAX_CLASSES = 40
"""More classes are listed as the lowest of them, and drawn as those with the most errors."""
MAX_CONFUSIONS = 10
MAX_ERRORS = 100


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Names and values: first the metrics of all classes; then of each class, or of the lowest of many."""
    of_class = {name: value for name, value in metrics.items() if is_class_metric(name)}
    if len(of_class) > MAX_CLASSES:
        lowest = sorted(of_class, key=lambda name: of_class[name])[:MAX_CLASSES]
        of_class = {name: of_class[name] for name in lowest}
    overall = {name: value for name, value in metrics.items() if not is_class_metric(name)}
    return [(name, f"{value:.4f}") for name, value in (overall | of_class).items()]


def is_class_metric(name: str) -> bool:
    return name.startswith(CLASS_METRICS)


def top_confusions(confusion: IntArray, labels: Sequence[str], most: int = MAX_CONFUSIONS) -> list[dict[str, Any]]:
    """The most frequent wrong answers: truth, answer, count, and the share of the truth's."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, columns = np.unravel_index(order, wrong.shape)
    totals = confusion.sum(axis=1)
    return [
        {
            "truth": labels[row],
            "answer": labels[column],
            "count": int(wrong[row, column]),
            "share": round(float(wrong[row, column] / totals[row]), 4),
        }
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if wrong[row, column]
    ]


def confusion_picture(confusion: IntArray, labels: Sequence[str]) -> Image.Image:
    """The confusion matrix of the classes that occur; of many, those with the most errors."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    errors = wrong.sum(axis=0) + wrong.sum(axis=1)
    occurring = np.flatnonzero(confusion.sum(axis=0) + confusion.sum(axis=1))
    caption = "truth in rows,\nanswer in columns"
    if len(occurring) > MAX_CLASSES:
        caption += f";\nthe {MAX_CLASSES} classes of {len(occurring)}\nwith the most errors"
        worst = occurring[np.argsort(-errors[occurring], kind="stable")[:MAX_CLASSES]]
        occurring = np.sort(worst)
    chosen = occurring.tolist()
    # Shares are of all pictures of a class, those with an answer that is not drawn too.
    totals = confusion.sum(axis=1)[chosen]
    return draw_confusion(confusion[np.ix_(chosen, chosen)], [labels[at] for at in chosen], caption, totals=totals)


def report_json(model: ModelIdentity, dataset: Dataset, manifest: Manifest, figures: Figures) -> dict[str, Any]:
    """The whole report, for `--json`. Errors of pictures are cut at MAX_ERRORS."""
    report: dict[str, Any] = {
        "model": model.name,
        "task": model.task.value,
        "weights_sha256": model.weights_sha256,
        "precision": model.precision,
        "data": {
            "path": str(dataset.path),
            "format": dataset.format.value,
            "sha256": manifest.data_sha256,
            "pictures": len(dataset.samples),
        },
        "parameters": dict(manifest.parameters),
        "measured": figures.measured,
        "left_out": figures.left_out,
        "failed": len(figures.errors),
        "metrics": figures.metrics,
    }
    if figures.confusion is not None:
        report["confusions"] = top_confusions(figures.confusion, model.labels)
    report["errors"] = dict(list(figures.errors.items())[:MAX_ERRORS])
    return report


def accuracy_entry(model: ModelIdentity, dataset: Dataset, manifest: Manifest, figures: Figures) -> Accuracy:
    """The figures as a bundle's config has them."""
    parts = [f"{figures.measured} pictures of {dataset.path.name} ({dataset.format})"]
    if figures.errors:
        parts.append(f"{len(figures.errors)} could not be read")
    if model.task is Task.DETECT:
        parts.append(
            f"detections above a score of {manifest.parameters['score_threshold']:g}, at most "
            f"{manifest.parameters['max_detections']} a picture"
        )
    parts.append(f"precision {model.precision}; by `convmlp eval`")
    return Accuracy(metrics=figures.metrics, measured_on="; ".join(parts), data_sha256=manifest.data_sha256)
