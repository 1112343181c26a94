"""Semantic FPN (arXiv 1901.02446, section 3.1): one upsampling branch a pyramid level, summed at stride 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from model.families.semantic_fpn import SemanticFPNSpec
from model.net.fpn import FPN
from model.net.label_maps import predict_segments
from model.net.layers import ConvModule
from model.net.network import FamilyNetwork, StateDictShapes, build_backbone, infer_backbone


class DoubleSize(nn.Module):
    """Twice the height and width, bilinear, align_corners=False."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class SemanticFPNHead(nn.Module):
    """Pyramid levels (N, C, H/s, W/s), s = 4, 8, 16, 32 → logits (N, classes, H/4, W/4)."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, levels: int = 4) -> None:
        super().__init__()
        self.scale_heads = nn.ModuleList(_scale_head(in_channels, channels, level) for level in range(levels))
        self.dropout = nn.Dropout2d(0.1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        total: Tensor = self.scale_heads[0](levels[0])
        size = total.shape[-2:]
        for head, level in zip(list(self.scale_heads)[1:], levels[1:], strict=True):
            # Odd sizes round up at each halving, so doubling may overshoot by a pixel or more.
            total = total + F.interpolate(head(level), size=size, mode="bilinear", align_corners=False)
        logits: Tensor = self.conv_seg(self.dropout(total))
        return logits


def _scale_head(in_channels: int, channels: int, level: int) -> nn.Sequential:
    """From stride 4·2^level to 4: pairs of convolution and doubling; level 0 has one convolution alone."""
    head = nn.Sequential()
    for index in range(max(1, level)):
        head.append(ConvModule(in_channels if index == 0 else channels, channels, 3, norm=True, relu=True))
        if level > 0:
            head.append(DoubleSize())
    return head


class SemanticFPN(nn.Module):
    """Normalised float (N, 3, H, W) RGB → logits (N, classes, H/4, W/4), sizes rounded up."""

    def __init__(self, spec: SemanticFPNSpec, num_classes: int) -> None:
        super().__init__()
        self.backbone = build_backbone(spec.backbone)
        self.neck = FPN(spec.backbone.level_channels, spec.fpn_channels)
        self.decode_head = SemanticFPNHead(spec.fpn_channels, spec.head_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decode_head(self.neck(self.backbone(x)))
        return logits


CLASS_KEY = "decode_head.conv_seg.weight"


def _infer(shapes: StateDictShapes) -> tuple[SemanticFPNSpec, int]:
    spec = SemanticFPNSpec(
        backbone=infer_backbone(shapes),
        fpn_channels=shapes.rows("neck.fpn_convs.0.conv.weight"),
        head_channels=shapes.rows("decode_head.scale_heads.0.0.conv.weight"),
    )
    return spec, shapes.rows(CLASS_KEY)


NETWORK = FamilyNetwork(build=SemanticFPN, predict=predict_segments, class_key=CLASS_KEY, infer=_infer)
