"""RetinaNet (arXiv 1708.02002, section 4): dense class scores and box deltas at five pyramid levels.

`retinanet_detections` is the procedure at test time (section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.families.retinanet import RetinaNetSpec
from model.net.boxes import RETINANET_ANCHORS
from model.net.detections import BatchGeometry, best_detections, detect_outputs, level_candidates
from model.net.fpn import FPN
from model.net.layers import ConvModule
from model.net.network import FamilyNetwork, StateDictShapes, build_backbone, infer_backbone
from model.spec import DetectPostSpec, Postprocessing
from model.types import Batch, DetectOutput, Geometry, QueryParams

CLASS_KEY = "bbox_head.retina_cls.weight"
PRIOR_PROBABILITY = 0.01
"""Every class's score at the start of training (section 4.1), so that background does not dominate the loss."""


class RetinaHead(nn.Module):
    """Two stacks of convolutions, shared by all levels: one for classes, one for boxes."""

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
        self.backbone = build_backbone(spec.backbone)
        self.neck = FPN(spec.backbone.level_channels[1:], spec.fpn_channels, extra_levels=2)
        self.bbox_head = RetinaHead(spec.fpn_channels, spec.head_convs, num_classes, RETINANET_ANCHORS.per_position)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = self.bbox_head(self.neck(self.backbone(x)[1:]))
        return logits, deltas


def retinanet_detections(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    geometries: Sequence[Geometry],
    params: Sequence[QueryParams],
    spec: DetectPostSpec,
) -> list[DetectOutput]:
    """The network's logits and deltas → each row's detections in pixels of its picture.

    Takes the best candidates of each level; clips boxes to the input without padding; scales them to the picture, where
    `best_detections` chooses.
    """
    frames = BatchGeometry.of(geometries, logits[0].device)
    levels = [
        level_candidates(scores, moves, RETINANET_ANCHORS, level, frames, spec.candidates_per_level)
        for level, (scores, moves) in enumerate(zip(logits, deltas, strict=True))
    ]
    boxes = torch.cat([level.boxes for level in levels], dim=1) / frames.scales
    scores = torch.cat([level.scores for level in levels], dim=1)
    classes = torch.cat([level.classes for level in levels], dim=1)
    return detect_outputs(*best_detections(boxes, scores, classes, params, spec), params)


def _predict(network: RetinaNet, x: Tensor, batch: Batch, postprocessing: Postprocessing) -> list[DetectOutput]:
    assert isinstance(postprocessing, DetectPostSpec)
    logits, deltas = network(x)
    return retinanet_detections(logits, deltas, batch.geometries, batch.params, postprocessing)


def _infer(shapes: StateDictShapes) -> tuple[RetinaNetSpec, int]:
    spec = RetinaNetSpec(
        backbone=infer_backbone(shapes),
        fpn_channels=shapes.rows("neck.fpn_convs.0.conv.weight"),
        head_convs=shapes.count("bbox_head.cls_convs."),
    )
    return spec, shapes.rows(CLASS_KEY) // RETINANET_ANCHORS.per_position


def _score_layer(network: RetinaNet) -> nn.Conv2d:
    return network.bbox_head.retina_cls


NETWORK = FamilyNetwork(build=RetinaNet, predict=_predict, class_key=CLASS_KEY, infer=_infer, score_layer=_score_layer)
