"""RetinaNet (arXiv 1708.02002, section 4): dense class scores and box deltas at five pyramid levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from model.net.anchors import RETINANET_ANCHORS
from model.net.backbone import ConvMLP
from model.net.conv import ConvModule
from model.net.neck import FPN
from model.spec import RetinaNetSpec

PRIOR_PROBABILITY = 0.01
"""What every class scores at the start of training (section 4.1), so that background does not drown the rest."""


class RetinaHead(nn.Module):
    """Two towers of convolutions, shared by all levels: one for classes, one for boxes."""

    def __init__(self, channels: int, convs: int, num_classes: int, anchors: int) -> None:
        super().__init__()
        self.cls_convs = nn.ModuleList(ConvModule(channels, channels, 3, relu=True) for _ in range(convs))
        self.reg_convs = nn.ModuleList(ConvModule(channels, channels, 3, relu=True) for _ in range(convs))
        self.retina_cls = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        for last in (self.retina_cls, self.retina_reg):
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.retina_cls.bias, -math.log(1 / PRIOR_PROBABILITY - 1))  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = [], []
        for level in levels:
            classes = boxes = level
            for conv in self.cls_convs:
                classes = conv(classes)
            for conv in self.reg_convs:
                boxes = conv(boxes)
            logits.append(self.retina_cls(classes))
            deltas.append(self.retina_reg(boxes))
        return logits, deltas


class RetinaNet(nn.Module):
    """Normalised float (N, 3, H, W) RGB → class logits and box deltas of each level, strides 8 to 128.

    Logits are (N, A·classes, h, w), channel a·classes + c, before the sigmoid. Deltas are (N, A·4, h, w),
    channel a·4 + (dx, dy, dw, dh), relative to `RETINANET_ANCHORS`.
    """

    def __init__(self, spec: RetinaNetSpec, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = ConvMLP(spec.backbone)
        self.neck = FPN(spec.backbone.level_channels[1:], spec.fpn_channels, extra_levels=2)
        self.bbox_head = RetinaHead(spec.fpn_channels, spec.head_convs, num_classes, RETINANET_ANCHORS.per_position)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = self.bbox_head(self.neck(self.backbone(x)[1:]))
        return logits, deltas
