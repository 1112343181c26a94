"""UPerNet's segmenter (arXiv 1807.10221, section 3.1), with mmsegmentation's parameter names.

The second head that its trainings add to a level computes no answer: `models import` leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.families.upernet import UPerNetSpec
from model.net.label_maps import predict_segments
from model.net.layers import ConvModule
from model.net.network import FamilyNetwork, StateDictShapes, build_backbone, infer_backbone

POOL_SIZES = (1, 2, 3, 6)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class UPerHead(nn.Module):
    """Levels (N, C, H/s, W/s), s = 4, 8, 16, 32 → logits (N, classes, H/4, W/4)."""

    def __init__(self, level_channels: Sequence[int], channels: int, num_classes: int) -> None:
        super().__init__()
        *finer, coarsest = level_channels
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        self.dropout = nn.Dropout2d(0.1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), _conv(coarsest, channels, 1)) for size in POOL_SIZES
        )
        self.bottleneck = _conv(coarsest + len(POOL_SIZES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(_conv(wide, channels, 1) for wide in finer)
        self.fpn_convs = nn.ModuleList(_conv(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = _conv(len(level_channels) * channels, channels, 3)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = levels
        pooled = (_resized(pooling(coarsest), coarsest) for pooling in self.psp_modules)
        maps = [self.bottleneck(torch.cat((coarsest, *pooled), dim=1))]
        for level, lateral in zip(reversed(finer), reversed(list(self.lateral_convs)), strict=True):
            own = lateral(level)
            maps.insert(0, own + _resized(maps[0], own))
        finest, *coarser = [conv(one) for conv, one in zip(self.fpn_convs, maps[:-1], strict=True)]
        together = torch.cat((finest, *(_resized(one, finest) for one in (*coarser, maps[-1]))), dim=1)
        logits: Tensor = self.conv_seg(self.dropout(self.fpn_bottleneck(together)))
        return logits


def _conv(channels: int, out_channels: int, kernel: int) -> ConvModule:
    return ConvModule(channels, out_channels, kernel, norm=True, relu=True)


class UPerNet(nn.Module):
    """Normalised float (N, 3, H, W) RGB → logits (N, classes, H/4, W/4)."""

    def __init__(self, spec: UPerNetSpec, num_classes: int) -> None:
        super().__init__()
        self.backbone = build_backbone(spec.backbone)
        self.decode_head = UPerHead(spec.backbone.level_channels, spec.head_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.decode_head(self.backbone(x))
        return logits


CLASS_KEY = "decode_head.conv_seg.weight"


def _infer(shapes: StateDictShapes) -> tuple[UPerNetSpec, int]:
    channels = shapes.rows("decode_head.fpn_bottleneck.conv.weight")
    return UPerNetSpec(backbone=infer_backbone(shapes), head_channels=channels), shapes.rows(CLASS_KEY)


NETWORK = FamilyNetwork(
    build=UPerNet,
    predict=predict_segments,
    class_key=CLASS_KEY,
    infer=_infer,
    key="decode_head.psp_modules.0.1.conv.weight",
)
