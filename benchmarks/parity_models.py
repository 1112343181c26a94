"""Models of the paper's size S with pseudo-random weights: they need no checkpoint, and their answers vary.

Random weights are a harder test than trained ones: scores lie closer together, so that rounding changes more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.parity_pictures import varied_reference
from model.bundle import Bundle, Source
from model.families.classifier import ClassifierSpec
from model.families.convmlp import CONVMLP_SIZES
from model.families.mask_rcnn import MaskRCNNSpec
from model.families.registry import Architecture
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.net.mask_rcnn import BOX_GRID, MASK_GRID, MaskRCNN
from model.net.network import build_network
from model.net.normalise import Normalise
from model.net.weights import BundleMetadata, write_bundle
from model.preprocess import prepare
from model.reference import ClassifyReference, DetectReference, ReferenceAnswer, SegmentReference
from model.spec import (
    CenterCropSpec,
    ClassifyPostSpec,
    DetectPostSpec,
    KeepRatioSpec,
    Postprocessing,
    Preprocessing,
    SegmentPostSpec,
)

SMALL = CONVMLP_SIZES["s"]
COCO_INPUT = KeepRatioSpec(long_side=1333, short_side=800, pad_multiple=32)
CALIBRATION_INPUT = KeepRatioSpec(long_side=320, short_side=224, pad_multiple=32)
LAYERS = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
SPREADS = {
    "head": (0.0, 2.5),
    "retina_cls": (-9.0, 2.5),
    "retina_reg": (0.0, 0.3),
    "rpn_cls": (0.0, 2.0),
    "rpn_reg": (0.0, 0.3),
    "fc_cls": (0.0, 2.0),
    "conv_seg": (0.0, 2.0),
}
"""Mean and standard deviation of a last layer's outputs; all other layers have 0 and 1."""
BACKGROUND_LOGIT = 8.0


@dataclass(frozen=True, slots=True)
class Family:
    """As published: on ImageNet-1k, COCO, ADE20K."""

    architecture: Architecture
    classes: int
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    reference: ReferenceAnswer


FAMILIES: dict[str, Family] = {
    "classifier": Family(
        ClassifierSpec(backbone=SMALL), 1000, CenterCropSpec(), ClassifyPostSpec(), ClassifyReference(labels=())
    ),
    "retinanet": Family(
        RetinaNetSpec(backbone=SMALL), 80, COCO_INPUT, DetectPostSpec(), DetectReference(detections=())
    ),
    "mask_rcnn": Family(MaskRCNNSpec(backbone=SMALL), 80, COCO_INPUT, DetectPostSpec(), DetectReference(detections=())),
    "semantic_fpn": Family(
        SemanticFPNSpec(backbone=SMALL),
        150,
        KeepRatioSpec(long_side=2048, short_side=512),
        SegmentPostSpec(),
        SegmentReference(grid=()),
    ),
}


def random_bundle(store: Path, name: str, fill: Callable[[nn.Module], None] | None) -> Bundle:
    """A bundle of size S in `store`.

    Args:
        store: a folder of bundles.
        name: of a family.
        fill: gives a network its weights; None: pseudo-random ones, calibrated.
    """
    family = FAMILIES[name]
    torch.manual_seed(0)
    network = build_network(family.architecture, family.classes).eval()
    if fill is None:
        calibrate(network)
    else:
        fill(network)
    metadata = BundleMetadata(
        name=f"{name}_s_{'random' if fill is None else 'filled'}",
        architecture=family.architecture,
        labels=tuple(f"class {index}" for index in range(family.classes)),
        preprocessing=family.preprocessing,
        postprocessing=family.postprocessing,
        precision="fp32",
        source=Source(description="pseudo-random weights", url="", licence="CC0-1.0", attribution=""),
        accuracy=None,
    )
    return write_bundle(store, metadata, network, lambda _: family.reference)


@torch.no_grad()
def calibrate(network: nn.Module) -> None:
    """Centre and scale each layer on the reference picture, layer by layer, so that no signal dies or explodes.

    Batch norm gets the statistics of what it sees, and a random weight and bias.
    """
    done: set[nn.Module] = set()
    names = {module: name.rsplit(".", 1)[-1] for name, module in network.named_modules()}

    def observe(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    def scale(layer: nn.Module, _: object, out: Tensor) -> Tensor:
        if layer in done:  # all levels share the heads
            return out
        done.add(layer)
        assert isinstance(layer, LAYERS)
        mean, spread = SPREADS.get(names[layer], (0.0, 1.0))
        channels = -1 if isinstance(layer, nn.Linear) else 1
        by_channel = out.transpose(channels, -1)
        # The classifier's last layer sees one row: centred over a batch of one, its output would be constant.
        centre = by_channel.flatten(0, -2).mean(dim=0) if out.dim() > 2 else by_channel.mean()
        factor = spread / out.std()
        layer.weight.mul_(factor)
        if layer.bias is None:
            return out * factor
        layer.bias.sub_(centre).mul_(factor).add_(mean)
        return ((by_channel - centre) * factor + mean).transpose(channels, -1)

    hooks = [module.register_forward_hook(scale) for module in names if isinstance(module, LAYERS)]
    for module in names:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            hooks.append(module.register_forward_pre_hook(observe))
    network(_calibration_input())
    if isinstance(network, MaskRCNN):
        heads = network.roi_head
        channels = heads.mask_head.upsample.in_channels
        heads.bbox_head(torch.randn(256, channels, BOX_GRID, BOX_GRID))
        heads.mask_head(torch.randn(16, channels, MASK_GRID, MASK_GRID))
        heads.bbox_head.fc_cls.bias[-1] += BACKGROUND_LOGIT
    for hook in hooks:
        hook.remove()


def _calibration_input() -> Tensor:
    pictures = [prepare(one, CALIBRATION_INPUT).pixels for one in varied_reference(4)]
    x: Tensor = Normalise(CALIBRATION_INPUT)(torch.from_numpy(np.stack(pictures)))
    return x
