"""The class names of the data sets that the authors' checkpoints were trained on.

`labels/*.txt` have a name a line: line i + 1 is class index i of the checkpoint's last layer. How each order was
established is told in `docs/decisions/0003-catalogue.md`.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "labels"


class LabelSet(StrEnum):
    IMAGENET = "imagenet"
    CIFAR10 = "cifar10"
    CIFAR100 = "cifar100"
    FLOWERS102 = "flowers102"
    COCO = "coco"
    ADE20K = "ade20k"


@cache
def read_labels(label_set: LabelSet) -> tuple[str, ...]:
    """The names by class index. Spelled as in the data set's own files; ImageNet's are torchvision's short ones."""
    return tuple((_FOLDER / f"{label_set}.txt").read_text(encoding="utf-8").splitlines())
