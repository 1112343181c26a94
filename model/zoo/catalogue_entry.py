"""A catalogue's entries: published checkpoints, their networks, pipelines, figures and sources. Torch-free.

`labels/*.txt` have the data sets' class names: line i + 1 is class index i of the checkpoint's last layer.
`docs/decisions/0003-catalogue.md` describes how each order was established.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Literal

from model.bundle import Accuracy, Source
from model.families.registry import Architecture, family_of
from model.spec import Postprocessing, Preprocessing
from model.types import Task

_FOLDER = Path(__file__).parent / "labels"


class LabelSet(StrEnum):
    """The data sets whose class names are in `labels/`."""

    IMAGENET = "imagenet"
    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    FLOWERS102 = "flowers102"
    COCO = "coco"
    ADE20K = "ade20k"


@cache
def read_labels(label_set: LabelSet) -> tuple[str, ...]:
    """Names by class index, spelled as in the data set's files; ImageNet's are torchvision's short names."""
    return tuple((_FOLDER / f"{label_set}.txt").read_text(encoding="utf-8").splitlines())


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A checkpoint file.

    `path` is relative to the authors' folder of checkpoints and to any mirror of it; `url` is the file's address.
    `accuracy` has fractions; the authors print per cent. `parameters_millions` and `gmacs` (10^9 multiply-adds of an
    input) are as published, rounded; None if not published. `weights`: which ones the authors evaluate, where a file
    has both: `raw` ones, or `ema`, their exponential moving average.
    """

    name: str
    path: str
    url: str
    architecture: Architecture
    label_set: LabelSet
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    source: Source
    accuracy: Accuracy
    parameters_millions: float
    gmacs: float | None
    weights: Literal["raw", "ema"] | None = None

    @property
    def task(self) -> Task:
        return family_of(self.architecture).task

    @property
    def megabytes(self) -> float:
        """Of the weights in float32."""
        return 4 * self.parameters_millions

    @property
    def labels(self) -> tuple[str, ...]:
        """Names by class index."""
        return read_labels(self.label_set)
