"""Each registered backbone at a few thousand parameters, as a real classifier bundle."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from model.bundle import Bundle
from model.families.classifier import ClassifierSpec
from model.families.cmt import CMTSpec
from model.families.hire_mlp import HireMLPSpec
from model.families.hvt import HVTSpec
from model.families.registry import BackboneSpec
from model.families.repmlpnet import RepMLPNetSpec
from model.net.network import build_network
from model.zoo.importer import import_checkpoint

BACKBONES: dict[str, BackboneSpec] = {
    "cmt": CMTSpec(
        input_size=32,
        stem_channels=8,
        stage_channels=(16, 32, 64, 128),
        stage_depths=(1, 1, 2, 1),
        hidden_channels=(37, 66, 128, 256),
        projection_channels=64,
    ),
    "hire_mlp": HireMLPSpec(stage_channels=(8, 16, 24, 32), stage_depths=(2, 2, 3, 2), mlp_ratio=2),
    "repmlpnet": RepMLPNetSpec(
        stage_channels=(8, 16, 32, 64), stage_depths=(1, 1, 2, 1), share_sets=(1, 2, 4, 8), partitions=(8, 4, 2, 1)
    ),
    "hvt": HVTSpec(input_size=64, channels=128, depth=4, pooled_blocks=(0, 2), mlp_ratio=2),
}
CLASSES = 5


@torch.no_grad()
def tiny_classifier(backbone: str) -> nn.Module:
    """Random weights, statistics of batch norms too, in evaluation mode."""
    torch.manual_seed(3)
    network = build_network(ClassifierSpec(backbone=BACKBONES[backbone]), CLASSES)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.3)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif "pos_embed" in name or "relative_pos" in name:
            tensor.normal_(std=0.3)
        elif tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor) * 0.2)
    network.head.weight.mul_(5.0)  # type: ignore[operator, union-attr]
    return network.eval()


def checkpoint(folder: Path, backbone: str, name: str = "mine.pth") -> Path:
    path = folder / name
    torch.save(tiny_classifier(backbone).state_dict(), path)
    return path


def tiny_backbone_bundle(folder: Path, backbone: str) -> Bundle:
    return import_checkpoint(checkpoint(folder, backbone), folder / "store", backbone.replace("_", "-"))
