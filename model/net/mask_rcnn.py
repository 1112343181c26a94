"""Mask R-CNN on an FPN (arXiv 1703.06870, section 3; heads as in its figure 4, right).

`mask_rcnn_detections` is the procedure at test time (section 3.1, "Inference").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.families.mask_rcnn import MaskRCNNSpec
from model.net.boxes import RPN_ANCHORS, box_areas, clip_boxes, decode_deltas
from model.net.detection_ops import grouped_nms, roi_align
from model.net.detections import (
    BatchGeometry,
    best_detections,
    detect_outputs,
    level_candidates,
    nan_unless_finite,
)
from model.net.fpn import FPN
from model.net.layers import ConvModule
from model.net.network import FamilyNetwork, StateDictShapes, build_backbone, infer_backbone
from model.spec import DetectPostSpec, Postprocessing
from model.types import Batch, DetectOutput, Float32Array, Geometry, QueryParams

CLASS_KEY = "roi_head.mask_head.conv_logits.weight"
BOX_GRID = 7
"""Side of the box head's RoIAlign grid, in cells."""
MASK_GRID = 14
"""Side of the mask head's RoIAlign grid, in cells; its masks have twice the side."""


class RPNHead(nn.Module):
    """Objectness and box deltas of each anchor of `RPN_ANCHORS`."""

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
    """Features (R, C, 14, 14) → mask logits of each class (R, classes, 28, 28)."""

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
    """The heads that take regions, grouped as in the checkpoints."""

    def __init__(self, spec: MaskRCNNSpec, num_classes: int) -> None:
        super().__init__()
        self.bbox_head = BoxHead(spec.fpn_channels, spec.fc_channels, num_classes)
        self.mask_head = MaskHead(spec.fpn_channels, spec.mask_convs, num_classes)


class MaskRCNN(nn.Module):
    """Backbone, FPN and RPN; `roi_head` runs in `mask_rcnn_detections`."""

    def __init__(self, spec: MaskRCNNSpec, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = build_backbone(spec.backbone)
        self.neck = FPN(spec.backbone.level_channels, spec.fpn_channels)
        self.rpn_head = RPNHead(spec.fpn_channels)
        self.roi_head = RoIHead(spec, num_classes)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Normalised float (N, 3, H, W) RGB → pyramid of strides 4 to 32, RPN logits and deltas at 4 to 64.

        The RPN's fifth level is every second pixel of the fourth.
        """
        pyramid = self.neck(self.backbone(x))
        logits, deltas = self.rpn_head([*pyramid, F.max_pool2d(pyramid[-1], 1, stride=2)])
        return pyramid, logits, deltas


BOX_STDS = (0.1, 0.1, 0.2, 0.2)
FINEST_ROI_SIZE = 56
"""Regions of less than twice this size (square root of the area, input pixels) use the finest level."""
MASK_CHUNK = 128
"""Regions in the mask head at a time; bounds memory."""


def mask_rcnn_detections(
    heads: RoIHead,
    pyramid: Sequence[Tensor],
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    geometries: Sequence[Geometry],
    params: Sequence[QueryParams],
    spec: DetectPostSpec,
) -> list[DetectOutput]:
    """The network's outputs, and its heads → each row's detections in pixels of its picture.

    Proposals are made for the whole batch, regions are processed row by row: this bounds memory, and no row's
    rounding depends on how many regions other rows have.
    """
    frames = BatchGeometry.of(geometries, logits[0].device)
    proposals, filled = make_proposals(logits, deltas, frames, spec)
    outputs = []
    for row, row_params in enumerate(params):
        levels = [level[row].float() for level in pyramid]
        regions = proposals[row, filled[row]]
        limits, scales = frames.limits[row], frames.scales[row]
        boxes, scores, classes = detect_regions(heads, levels, regions, limits, scales, row_params, spec)
        (output,) = detect_outputs(boxes, scores, classes, torch.ones_like(scores, dtype=torch.bool), [row_params])
        if row_params.masks:
            masks = mask_logits(heads, levels, boxes[0] * scales, classes[0])
            output = DetectOutput(output.boxes, output.scores, output.classes, masks)
        outputs.append(output)
    return outputs


def make_proposals(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], frames: BatchGeometry, spec: DetectPostSpec
) -> tuple[Tensor, Tensor]:
    """The RPN's proposals by falling score: boxes (N, k, 4) in input pixels; bool (N, k): which are proposals.

    Boxes of scores or deltas that are not finite are NaN, and proposals.
    """
    levels = [
        level_candidates(scores, moves, RPN_ANCHORS, level, frames, spec.candidates_per_level)
        for level, (scores, moves) in enumerate(zip(logits, deltas, strict=True))
    ]
    boxes = torch.cat([level.boxes for level in levels], dim=1)
    scores = torch.cat([level.scores for level in levels], dim=1)
    groups = torch.cat([level.classes + number for number, level in enumerate(levels)], dim=1)
    boxes = boxes.masked_fill(scores.isnan()[..., None], torch.nan)
    valid = ~(boxes[..., 2:] <= boxes[..., :2]).any(dim=2)
    overlaps = scores.new_full((len(scores),), spec.proposal_nms_iou, dtype=torch.float32)
    kept, filled = grouped_nms(boxes, scores, groups, valid, overlaps, spec.proposals)
    return boxes.gather(1, kept[..., None].expand(-1, -1, 4)), filled


def detect_regions(
    heads: RoIHead,
    levels: Sequence[Tensor],
    regions: Tensor,
    limits: Tensor,
    scales: Tensor,
    params: QueryParams,
    spec: DetectPostSpec,
) -> tuple[Tensor, Tensor, Tensor]:
    """One picture's proposals (R, 4) → boxes (1, k, 4) in picture pixels, scores (1, k), classes (1, k)."""
    features = roi_features(levels, regions, BOX_GRID)
    logits, deltas = heads.bbox_head(features.to(_dtype(heads)))
    probabilities = logits.float().softmax(dim=1)[:, :-1]
    threshold = spec.score_threshold if params.score_threshold is None else params.score_threshold
    region, label = (~(probabilities <= threshold)).nonzero(as_tuple=True)
    scores = probabilities[region, label]
    moves = nan_unless_finite(deltas.float().unflatten(1, (-1, 4))[region, label])
    boxes = clip_boxes(decode_deltas(regions[region], moves, BOX_STDS), limits) / scales
    boxes, scores, label, filled = best_detections(boxes[None], scores[None], label[None], [params], spec)
    return boxes[:, filled[0]], scores[:, filled[0]], label[:, filled[0]]


def mask_logits(heads: RoIHead, levels: Sequence[Tensor], boxes: Tensor, classes: Tensor) -> Float32Array:
    """Mask logits of each box's class: boxes (R, 4) in input pixels → float32 (R, 28, 28) on the host."""
    masks = boxes.new_zeros(len(boxes), 2 * MASK_GRID, 2 * MASK_GRID)
    for chosen in torch.arange(len(boxes), device=boxes.device).split(MASK_CHUNK):
        features = roi_features(levels, boxes[chosen], MASK_GRID)
        logits = heads.mask_head(features.to(_dtype(heads)))
        masks[chosen] = logits[torch.arange(len(chosen), device=boxes.device), classes[chosen]].float()
    return masks.cpu().numpy()


def roi_features(levels: Sequence[Tensor], regions: Tensor, size: int) -> Tensor:
    """RoIAlign of each region on the level for its size (arXiv 1612.03144, equation 1, levels from 0).

    Args:
        levels: float32 (C, h, w) at strides 4, 8, 16, 32.
        regions: float32 (R, 4) in input pixels.
        size: side of the grid, in cells.

    Returns:
        float32 (R, C, size, size); NaN for regions that are not finite.
    """
    level_of = (box_areas(regions).sqrt() / FINEST_ROI_SIZE + 1e-6).log2().floor().clamp(0, len(levels) - 1)
    pooled = levels[0].new_full((len(regions), levels[0].shape[0], size, size), torch.nan)
    for number, level in enumerate(levels):
        chosen = (level_of == number).nonzero()[:, 0]
        if len(chosen):
            pooled[chosen] = roi_align(level, regions[chosen], size, scale=1 / RPN_ANCHORS.strides[number])
    return pooled


def _dtype(heads: RoIHead) -> torch.dtype:
    return heads.mask_head.upsample.weight.dtype


def _predict(network: MaskRCNN, x: Tensor, batch: Batch, postprocessing: Postprocessing) -> list[DetectOutput]:
    assert isinstance(postprocessing, DetectPostSpec)
    pyramid, logits, deltas = network(x)
    return mask_rcnn_detections(
        network.roi_head, pyramid, logits, deltas, batch.geometries, batch.params, postprocessing
    )


def _infer(shapes: StateDictShapes) -> tuple[MaskRCNNSpec, int]:
    spec = MaskRCNNSpec(
        backbone=infer_backbone(shapes),
        fpn_channels=shapes.rows("neck.fpn_convs.0.conv.weight"),
        fc_channels=shapes.rows("roi_head.bbox_head.shared_fcs.0.weight"),
        mask_convs=shapes.count("roi_head.mask_head.convs."),
    )
    return spec, shapes.rows(CLASS_KEY)


def _compile(network: MaskRCNN) -> None:
    network.compile()
    # The number of regions differs between pictures.
    network.roi_head.bbox_head.compile(dynamic=True)
    network.roi_head.mask_head.compile(dynamic=True)


NETWORK = FamilyNetwork(build=MaskRCNN, predict=_predict, class_key=CLASS_KEY, infer=_infer, compile=_compile)
