"""Mask R-CNN on an FPN (arXiv 1703.06870, section 3; heads as in its figure 4, right)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from model.net.anchors import RPN_ANCHORS
from model.net.backbone import ConvMLP
from model.net.conv import ConvModule
from model.net.neck import FPN
from model.spec import MaskRCNNSpec

BOX_GRID = 7
"""Cells a side of what RoIAlign gives the box head."""
MASK_GRID = 14
"""Cells a side of what RoIAlign gives the mask head; its masks have twice as many."""


class RPNHead(nn.Module):
    """Objectness and box deltas at each position, relative to `RPN_ANCHORS`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, RPN_ANCHORS.per_position, 1)
        self.rpn_reg = nn.Conv2d(channels, RPN_ANCHORS.per_position * 4, 1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Levels (N, C, h, w) → logits (N, A, h, w) and deltas (N, A·4, h, w) of each."""
        hidden = [F.relu(self.rpn_conv(level)) for level in levels]
        return [self.rpn_cls(level) for level in hidden], [self.rpn_reg(level) for level in hidden]


class BoxHead(nn.Module):
    """Features (R, C, 7, 7) → class logits (R, classes + 1), background last, and deltas (R, classes·4)."""

    def __init__(self, channels: int, fc_channels: int, num_classes: int) -> None:
        super().__init__()
        self.fc_cls = nn.Linear(fc_channels, num_classes + 1)
        self.fc_reg = nn.Linear(fc_channels, num_classes * 4)
        self.shared_fcs = nn.ModuleList(
            (nn.Linear(channels * BOX_GRID**2, fc_channels), nn.Linear(fc_channels, fc_channels))
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = features.flatten(1)
        for layer in self.shared_fcs:
            hidden = F.relu(layer(hidden))
        return self.fc_cls(hidden), self.fc_reg(hidden)


class MaskHead(nn.Module):
    """Features (R, C, 14, 14) → one mask's logits a class (R, classes, 28, 28)."""

    def __init__(self, channels: int, convs: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvModule(channels, channels, 3, relu=True) for _ in range(convs))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Tensor) -> Tensor:
        for conv in self.convs:
            features = conv(features)
        logits: Tensor = self.conv_logits(F.relu(self.upsample(features)))
        return logits


class RoIHead(nn.Module):
    """The two heads that look at regions, as the checkpoints group them."""

    def __init__(self, spec: MaskRCNNSpec, num_classes: int) -> None:
        super().__init__()
        self.bbox_head = BoxHead(spec.fpn_channels, spec.fc_channels, num_classes)
        self.mask_head = MaskHead(spec.fpn_channels, spec.mask_convs, num_classes)


class MaskRCNN(nn.Module):
    """Pyramid and proposals; `model/net/mask_rcnn_detect.py` goes on from there to boxes and masks."""

    def __init__(self, spec: MaskRCNNSpec, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = ConvMLP(spec.backbone)
        self.neck = FPN(spec.backbone.level_channels, spec.fpn_channels)
        self.rpn_head = RPNHead(spec.fpn_channels)
        self.roi_head = RoIHead(spec, num_classes)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Normalised float (N, 3, H, W) RGB → pyramid of strides 4 to 32, RPN logits and deltas at 4 to 64.

        The fifth level, which the RPN alone looks at, is every second pixel of the fourth.
        """
        pyramid = self.neck(self.backbone(x))
        logits, deltas = self.rpn_head([*pyramid, F.max_pool2d(pyramid[-1], 1, stride=2)])
        return pyramid, logits, deltas
