"""The published ImageNet classifiers on the other backbones. Torch-free.

Addresses, figures and words about licences are those of the authors' repositories. Where a paper's figure differs, it
stands beside, with its source. Preprocessing is that of the authors' evaluation scripts. This project measured none of
the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.bundle import Accuracy, Source
from model.families.classifier import ClassifierSpec
from model.families.cmt import CMT_SIZES
from model.families.hire_mlp import HIRE_MLP_SIZES
from model.families.registry import BackboneSpec, family_of
from model.zoo.catalogue_entry import CatalogueEntry, LabelSet

TERMS = "ImageNet-1k, which the weights were trained on, has terms of its own."


@dataclass(frozen=True, slots=True)
class _Publication:
    """What the checkpoints of one system have in common."""

    folder: str
    """The address of the folder with the files."""
    licence: str
    attribution: str
    weights: Literal["raw", "ema"] | None
    """Those that the authors evaluate; None: the averaged ones where a file has them."""


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A file. `top1` and `top5` are per cent, as printed; `parameters_millions` and `gmacs` as published."""

    title: str
    path: str
    backbone: BackboneSpec
    top1: float
    parameters_millions: float
    gmacs: float
    top5: float | None = None
    remark: str = ""

    def entry(self, publication: _Publication) -> CatalogueEntry:
        architecture = ClassifierSpec(backbone=self.backbone)
        url = publication.folder + self.path
        metrics = {"top1": round(self.top1 / 100, 4)}
        if self.top5 is not None:
            metrics["top5"] = round(self.top5 / 100, 4)
        remark = f"; {self.remark}" if self.remark else ""
        return CatalogueEntry(
            name=self.path.rpartition("/")[2].removesuffix(".pth"),
            path=self.path,
            url=url,
            architecture=architecture,
            label_set=LabelSet.IMAGENET,
            preprocessing=self.backbone.classifier_preprocessing,
            postprocessing=family_of(architecture).postprocessing,
            source=Source(
                description=f"{self.title} trained on ImageNet-1k by its authors",
                url=url,
                licence=f"{publication.licence} {TERMS}",
                attribution=publication.attribution,
            ),
            accuracy=Accuracy(
                metrics=metrics,
                measured_on=f"published by the authors, not measured here: ImageNet-1k validation part{remark}",
            ),
            parameters_millions=self.parameters_millions,
            gmacs=self.gmacs,
            weights=publication.weights,
        )


_CMT = _Publication(
    folder="https://github.com/ggjy/CMT.pytorch/releases/download/release-v1/",
    licence=(
        "The README of the authors' repository, https://github.com/ggjy/CMT.pytorch, has an MIT badge; the repository "
        "has no LICENSE file. The same code in https://github.com/huawei-noah/Efficient-AI-Backbones is under Apache "
        "2.0."
    ),
    attribution=(
        'J. Guo, K. Han, H. Wu, Y. Tang, X. Chen, Y. Wang, C. Xu, "CMT: Convolutional Neural Networks Meet Vision '
        'Transformers", arXiv 2107.06263 (https://arxiv.org/abs/2107.06263)'
    ),
    weights=None,  # their script evaluates `model_ema` where there is one, as `models import` does
)
_CMT_FILES = (
    _Checkpoint(
        "CMT-Ti",
        "cmt_tiny.pth",
        CMT_SIZES["ti"],
        79.0,
        9.5,
        0.6,
        remark="top-1 is the README's; tables of the paper, as others repeat them, have 79.2",
    ),
    _Checkpoint(
        "CMT-XS",
        "cmt_xs.pth",
        CMT_SIZES["xs"],
        81.8,
        15.2,
        1.5,
        remark="until 2022-07-01 the file of this address was a copy of cmt_small.pth",
    ),
    _Checkpoint(
        "CMT-S",
        "cmt_small.pth",
        CMT_SIZES["s"],
        83.5,
        26.26,
        4.0,
        remark=(
            "the authors' code has 26.26 million parameters; tables of the paper, as others repeat them, have 25.1 "
            "million"
        ),
    ),
    _Checkpoint("CMT-B", "cmt_base.pth", CMT_SIZES["b"], 84.5, 45.7, 9.3),
)

_HIRE_MLP = _Publication(
    folder="https://github.com/ggjy/Hire-Wave-MLP.pytorch/releases/download/log/",
    licence=(
        "The README of the authors' repository, https://github.com/ggjy/Hire-Wave-MLP.pytorch, has an MIT badge; the "
        "repository has no LICENSE file. Its training script keeps a header of DeiT's that names CC BY-NC."
    ),
    attribution=(
        'J. Guo, Y. Tang, K. Han, X. Chen, H. Wu, C. Xu, C. Xu, Y. Wang, "Hire-MLP: Vision MLP via Hierarchical '
        'Rearrangement", arXiv 2108.13341 (https://arxiv.org/abs/2108.13341)'
    ),
    weights="raw",  # their README evaluates with --no-model-ema
)
_HIRE_MLP_FILES = (
    _Checkpoint("Hire-MLP-Tiny", "hire_mlp_tiny.pth", HIRE_MLP_SIZES["tiny"], 79.7, 18.0, 2.1),
    _Checkpoint("Hire-MLP-Small", "hire_mlp_small.pth", HIRE_MLP_SIZES["small"], 82.1, 33.0, 4.2),
    _Checkpoint("Hire-MLP-Base", "hire_mlp_base.pth", HIRE_MLP_SIZES["base"], 83.2, 58.0, 8.1),
)
"""The README has a row of Hire-MLP-Large, 83.8 % and 96 million parameters, without a file."""

BACKBONE_CHECKPOINTS = (
    *(file.entry(_CMT) for file in _CMT_FILES),
    *(file.entry(_HIRE_MLP) for file in _HIRE_MLP_FILES),
)
