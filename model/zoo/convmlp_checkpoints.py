"""The 21 published checkpoints of ConvMLP's authors.

Torch-free. Figures are from the README of https://github.com/SHI-Labs/Convolutional-MLPs, which has the paper's (arXiv
2109.04454) and more. Preprocessing is that of its training configurations. This project measured none of the figures.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.bundle import Accuracy, Source
from model.families.classifier import ClassifierSpec
from model.families.convmlp import CONVMLP_SIZES
from model.families.mask_rcnn import MaskRCNNSpec
from model.families.registry import family_of
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.spec import CenterCropSpec, KeepRatioSpec, Normalisation, Preprocessing
from model.zoo.catalogue_entry import CatalogueEntry, LabelSet

CHECKPOINTS_URL = "https://shi-labs.com/projects/convmlp/checkpoints/"
PAPER = (
    'J. Li, A. Hassani, S. Walton, H. Shi, "ConvMLP: Hierarchical Convolutional MLPs for Vision", arXiv 2109.04454 '
    "(https://arxiv.org/abs/2109.04454)"
)
LICENCE = (
    "The checkpoints carry no terms of their own. The LICENSE of the authors' repository, "
    "https://github.com/SHI-Labs/Convolutional-MLPs, was added when its issue 1 asked for Apache-2.0; read it there. "
    "{dataset}, which the weights were trained on, has terms of its own."
)

SIZES = ("s", "m", "l")
PerSize = tuple[float, float, float]
"""A published figure of ConvMLP-S, M and L."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Three checkpoints that differ only in the backbone's size, which `path` and `title` have as `{size}`."""

    path: str
    title: str
    architecture: type[ClassifierSpec | RetinaNetSpec | MaskRCNNSpec | SemanticFPNSpec]
    dataset: str
    label_set: LabelSet
    preprocessing: Preprocessing
    measured_on: str
    metrics: dict[str, PerSize]
    parameters_millions: PerSize
    gmacs: PerSize | None = None

    def entries(self) -> list[CatalogueEntry]:
        return [self._entry(at, size) for at, size in enumerate(SIZES)]

    def _entry(self, at: int, size: str) -> CatalogueEntry:
        path = self.path.format(size=size)
        architecture = self.architecture(backbone=CONVMLP_SIZES[size])
        return CatalogueEntry(
            name=path.rpartition("/")[2].removesuffix(".pth"),
            path=path,
            url=CHECKPOINTS_URL + path,
            architecture=architecture,
            label_set=self.label_set,
            preprocessing=self.preprocessing,
            postprocessing=family_of(architecture).postprocessing,
            source=Source(
                description=f"{self.title.format(size=size.upper())} trained on {self.dataset} by its authors",
                url=CHECKPOINTS_URL + path,
                licence=LICENCE.format(dataset=self.dataset),
                attribution=PAPER,
            ),
            accuracy=Accuracy(
                metrics={metric: figures[at] for metric, figures in self.metrics.items()},
                measured_on=f"published by the authors, not measured here: {self.measured_on}",
            ),
            parameters_millions=self.parameters_millions[at],
            gmacs=None if self.gmacs is None else self.gmacs[at],
        )


def _grey_levels(*fractions: float) -> tuple[float, float, float]:
    red, green, blue = (round(255 * fraction, 4) for fraction in fractions)
    return red, green, blue


def _fine_tuned(mean: tuple[float, float, float], std: tuple[float, float, float]) -> CenterCropSpec:
    """Fine-tuned models are evaluated with crop_pct 1, the whole shorter side (ImageNet: 0.9)."""
    normalisation = Normalisation(mean=_grey_levels(*mean), std=_grey_levels(*std))
    return CenterCropSpec(resize_shorter=224, crop=224, normalisation=normalisation)


_COCO_INPUT = KeepRatioSpec(long_side=1333, short_side=800, pad_multiple=32)
_COCO_MEASURED_ON = "COCO 2017 validation part, after 12 epochs on its training part"

_GROUPS = (
    _Group(
        path="convmlp_{size}_imagenet.pth",
        title="ConvMLP-{size}",
        architecture=ClassifierSpec,
        dataset="ImageNet-1k",
        label_set=LabelSet.IMAGENET,
        preprocessing=CenterCropSpec(resize_shorter=248, crop=224),
        measured_on="ImageNet-1k validation part",
        metrics={"top1": (0.768, 0.790, 0.802)},
        parameters_millions=(9.0, 17.4, 42.7),
        gmacs=(2.4, 3.9, 9.9),
    ),
    _Group(
        path="convmlp_{size}_cifar10.pth",
        title="ConvMLP-{size}",
        architecture=ClassifierSpec,
        dataset="CIFAR-10",
        label_set=LabelSet.CIFAR10,
        preprocessing=_fine_tuned(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
        measured_on="CIFAR-10, pictures of 32 x 32 px enlarged to 224 x 224; fine-tuned from ImageNet-1k",
        metrics={"top1": (0.980, 0.986, 0.986)},
        parameters_millions=(8.51, 16.90, 41.97),
    ),
    _Group(
        path="convmlp_{size}_cifar100.pth",
        title="ConvMLP-{size}",
        architecture=ClassifierSpec,
        dataset="CIFAR-100",
        label_set=LabelSet.CIFAR100,
        preprocessing=_fine_tuned(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
        measured_on="CIFAR-100, pictures of 32 x 32 px enlarged to 224 x 224; fine-tuned from ImageNet-1k",
        metrics={"top1": (0.874, 0.891, 0.886)},
        parameters_millions=(8.56, 16.95, 42.04),
    ),
    _Group(
        path="convmlp_{size}_flowers102.pth",
        title="ConvMLP-{size}",
        architecture=ClassifierSpec,
        dataset="Oxford Flowers-102",
        label_set=LabelSet.FLOWERS102,
        preprocessing=_fine_tuned(mean=(0.4353, 0.3773, 0.2872), std=(0.2966, 0.2455, 0.2698)),
        measured_on=(
            "Flowers-102, fine-tuned from ImageNet-1k; probably on the split of a copy on Kaggle (6,552 pictures to "
            "train, 818 to validate), which is easier than the official one"
        ),
        metrics={"top1": (0.995, 0.995, 0.995)},
        parameters_millions=(8.56, 16.95, 42.04),
    ),
    _Group(
        path="detection/maskrcnn_convmlp_{size}_coco.pth",
        title="Mask R-CNN on ConvMLP-{size}",
        architecture=MaskRCNNSpec,
        dataset="COCO",
        label_set=LabelSet.COCO,
        preprocessing=_COCO_INPUT,
        measured_on=_COCO_MEASURED_ON,
        metrics={
            "box_ap": (0.384, 0.406, 0.417),
            "box_ap50": (0.598, 0.617, 0.628),
            "box_ap75": (0.418, 0.445, 0.455),
            "mask_ap": (0.357, 0.372, 0.382),
            "mask_ap50": (0.567, 0.588, 0.599),
            "mask_ap75": (0.382, 0.398, 0.411),
        },
        parameters_millions=(28.7, 37.1, 62.2),
    ),
    _Group(
        path="detection/retinanet_convmlp_{size}_coco.pth",
        title="RetinaNet on ConvMLP-{size}",
        architecture=RetinaNetSpec,
        dataset="COCO",
        label_set=LabelSet.COCO,
        preprocessing=_COCO_INPUT,
        measured_on=_COCO_MEASURED_ON,
        metrics={
            "box_ap": (0.372, 0.394, 0.402),
            "box_ap50": (0.564, 0.587, 0.593),
            "box_ap75": (0.398, 0.420, 0.433),
        },
        parameters_millions=(18.7, 27.1, 52.9),
    ),
    _Group(
        path="segmentation/sem_fpn_convmlp_{size}_ade20k.pth",
        title="Semantic FPN on ConvMLP-{size}",
        architecture=SemanticFPNSpec,
        dataset="ADE20K",
        label_set=LabelSet.ADE20K,
        preprocessing=KeepRatioSpec(long_side=2048, short_side=512),
        measured_on="ADE20K validation part, after 40,000 iterations on its training part",
        metrics={"miou": (0.358, 0.386, 0.400)},
        parameters_millions=(12.8, 21.1, 46.3),
    ),
)

CONVMLP_CHECKPOINTS = tuple(entry for group in _GROUPS for entry in group.entries())
