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
from model.families.hvt import HVT_SIZES
from model.families.registry import BackboneSpec, family_of
from model.families.repmlpnet import REPMLPNET_SIZES
from model.zoo.catalogue_entry import CatalogueEntry, LabelSet

TERMS = "ImageNet-1k, which the weights were trained on, has terms of its own."


@dataclass(frozen=True, slots=True)
class _Publication:
    """What the checkpoints of one system have in common."""

    folder: str
    """What the files' addresses begin with."""
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
    name: str = ""
    """Empty: the file's name without `.pth`."""

    def entry(self, publication: _Publication) -> CatalogueEntry:
        architecture = ClassifierSpec(backbone=self.backbone)
        url = publication.folder + self.path
        metrics = {"top1": round(self.top1 / 100, 4)}
        if self.top5 is not None:
            metrics["top5"] = round(self.top5 / 100, 4)
        name = self.name or self.path.rpartition("/")[2].removesuffix(".pth")
        remark = f"; {self.remark}" if self.remark else ""
        return CatalogueEntry(
            name=name,
            path=self.path if self.path.endswith(".pth") else f"{name}.pth",
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

_REPMLPNET = _Publication(
    folder="https://drive.google.com/uc?export=download&id=",
    licence="The authors' repository, https://github.com/DingXiaoH/RepMLP, is under the MIT licence.",
    attribution=(
        'X. Ding, H. Chen, X. Zhang, J. Han, G. Ding, "RepMLPNet: Hierarchical Vision MLP with Re-parameterized '
        'Locality", arXiv 2112.11081 (https://arxiv.org/abs/2112.11081)'
    ),
    weights=None,  # a file is a state dict
)


def _repmlpnet(size: str, drive_id: str, top1: float, parameters_millions: float, gmacs: float) -> _Checkpoint:
    return _Checkpoint(
        title=f"RepMLPNet-{size.upper()}",
        path=drive_id,
        backbone=REPMLPNET_SIZES[size],
        top1=top1,
        parameters_millions=parameters_millions,
        gmacs=gmacs,
        name=f"repmlpnet_{size}",
    )


_REPMLPNET_FILES = (
    _repmlpnet("t224", "1TgPDD78G-d3h_Y_vNTuqYdSJZHmnju7b", 76.62, 38.3, 2.8),
    _repmlpnet("b224", "1GwoUvxGXgzKArlCf0V9kvc9_3GtkGltp", 80.32, 68.2, 6.7),
    _repmlpnet("t256", "1mU0L76x20eAKzkHxEM7J2BvEOLWx_mux", 77.44, 58.7, 4.2),
    _repmlpnet("b256", "1W-__gXE7903cX-gOSXEGxNBCJjvqFCiJ", 81.03, 96.5, 9.6),
    _repmlpnet("d256", "1e5IYac0UHnJq2_lzbuE7J4rahMENX2ha", 80.83, 86.9, 8.6),
    _repmlpnet("l256", "1SHhNJ6pZax9qMLm8DJZtQ_XfmcmddPYU", 81.68, 117.7, 11.5),
)

_HVT = _Publication(
    folder="https://github.com/zhuang-group/HVT/releases/download/",
    licence="The authors' repository, https://github.com/ziplab/HVT, is under the Apache License 2.0.",
    attribution=(
        'Z. Pan, B. Zhuang, J. Liu, H. He, J. Cai, "Scalable Vision Transformers with Hierarchical Pooling", arXiv '
        "2103.10619 (https://arxiv.org/abs/2103.10619)"
    ),
    weights="raw",
)
_HVT_FILES = (
    _Checkpoint("HVT-Ti-1", "v1.0/hvt_ti_1.pth", HVT_SIZES["ti_1"], 69.64, 5.74, 0.64, top5=89.40),
    _Checkpoint(
        "Scale-HVT-Ti-4",
        "v1.0/scale_hvt_ti_4.pth",
        HVT_SIZES["scale_ti_4"],
        75.23,
        22.12,
        1.39,
        top5=92.30,
        remark="the README links this file as HVT-S-4 too",
    ),
    _Checkpoint("HVT-S-0", "v1.0/hvt_s_0.pth", HVT_SIZES["s_0"], 80.39, 22.05, 4.57, top5=95.13),
    _Checkpoint(
        "HVT-S-1",
        "v1.1/hvt_s_1.pth",
        HVT_SIZES["s_1"],
        78.00,
        22.09,
        2.40,
        top5=93.83,
        remark="of release v1.1, trained again",
    ),
    _Checkpoint("HVT-S-2", "v1.0/hvt_s_2.pth", HVT_SIZES["s_2"], 77.36, 22.11, 1.94, top5=93.55),
    _Checkpoint("HVT-S-3", "v1.0/hvt_s_3.pth", HVT_SIZES["s_3"], 76.32, 22.11, 1.62, top5=92.90),
)

BACKBONE_CHECKPOINTS = (
    *(file.entry(_CMT) for file in _CMT_FILES),
    *(file.entry(_HIRE_MLP) for file in _HIRE_MLP_FILES),
    *(file.entry(_REPMLPNET) for file in _REPMLPNET_FILES),
    *(file.entry(_HVT) for file in _HVT_FILES),
)
