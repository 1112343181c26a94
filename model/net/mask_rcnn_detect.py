"""Mask R-CNN's test time: proposals, boxes, masks (arXiv 1703.06870, section 3.1, "Inference")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.net.anchors import RPN_ANCHORS
from model.net.boxes import box_areas, clip_boxes, decode_deltas
from model.net.detections import Frames, detect_outputs, level_candidates
from model.net.mask_rcnn import BOX_GRID, MASK_GRID, RoIHead
from model.net.nms import grouped_nms
from model.net.roi_align import roi_align
from model.spec import DetectPostSpec
from model.types import DetectOutput, Float32Array, Geometry, QueryParams

BOX_STDS = (0.1, 0.1, 0.2, 0.2)
FINEST_ROI = 56
"""A region of this size in input pixels, or less than twice it, is looked at on the finest level."""
MASK_CHUNK = 128
"""Regions that go through the mask head at a time: bounds memory."""


def detections(
    heads: RoIHead,
    pyramid: Sequence[Tensor],
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    geometries: Sequence[Geometry],
    params: Sequence[QueryParams],
    spec: DetectPostSpec,
) -> list[DetectOutput]:
    """What `MaskRCNN` answered, and its heads → detections of each row in pixels of its own picture.

    Proposals are made for the batch, regions looked at a row at a time: that bounds memory, and no row's
    rounding depends on how many regions its neighbours have.
    """
    frames = Frames.of(geometries, logits[0].device)
    proposals, filled = propose(logits, deltas, frames, spec)
    outputs = []
    for row, one in enumerate(params):
        levels = [level[row].float() for level in pyramid]
        regions = proposals[row, filled[row]]
        limits, scales = frames.limits[row], frames.scales[row]
        boxes, scores, classes = detect_regions(heads, levels, regions, limits, scales, one, spec)
        (output,) = detect_outputs(boxes, scores, classes, torch.ones_like(scores, dtype=torch.bool), [one])
        if one.masks:
            masks = mask_logits(heads, levels, boxes[0] * scales, classes[0])
            output = DetectOutput(output.boxes, output.scores, output.classes, masks)
        outputs.append(output)
    return outputs


def propose(
    logits: Sequence[Tensor], deltas: Sequence[Tensor], frames: Frames, spec: DetectPostSpec
) -> tuple[Tensor, Tensor]:
    """The RPN's proposals: (N, k, 4) input pixels by falling score, and bool (N, k), which of them are filled."""
    levels = [
        level_candidates(scores, moves, RPN_ANCHORS, level, frames, spec.candidates_per_level)
        for level, (scores, moves) in enumerate(zip(logits, deltas, strict=True))
    ]
    boxes = torch.cat([level.boxes for level in levels], dim=1)
    scores = torch.cat([level.scores for level in levels], dim=1)
    groups = torch.cat([level.classes + number for number, level in enumerate(levels)], dim=1)
    valid = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    kept, filled = grouped_nms(boxes, scores, groups, valid, spec.proposal_nms_iou, spec.proposals)
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
    features = region_features(levels, regions, BOX_GRID)
    logits, deltas = heads.bbox_head(features.to(_dtype(heads)))
    probabilities = logits.float().softmax(dim=1)[:, :-1]
    threshold = spec.score_threshold if params.score_threshold is None else params.score_threshold
    region, label = (probabilities > threshold).nonzero(as_tuple=True)
    scores = probabilities[region, label]
    moves = deltas.float().unflatten(1, (-1, 4))[region, label]
    boxes = clip_boxes(decode_deltas(regions[region], moves, BOX_STDS), limits) / scales
    valid = torch.ones_like(scores, dtype=torch.bool)
    kept, filled = grouped_nms(boxes[None], scores[None], label[None], valid[None], spec.nms_iou, params.max_detections)
    kept = kept[filled]
    return boxes[None, kept], scores[None, kept], label[None, kept]


def mask_logits(heads: RoIHead, levels: Sequence[Tensor], boxes: Tensor, classes: Tensor) -> Float32Array:
    """Each box's mask of its own class: boxes (R, 4) in input pixels → float32 (R, 28, 28) on the host."""
    masks = boxes.new_zeros(len(boxes), 2 * MASK_GRID, 2 * MASK_GRID)
    for chosen in torch.arange(len(boxes), device=boxes.device).split(MASK_CHUNK):
        features = region_features(levels, boxes[chosen], MASK_GRID)
        logits = heads.mask_head(features.to(_dtype(heads)))
        masks[chosen] = logits[torch.arange(len(chosen), device=boxes.device), classes[chosen]].float()
    return masks.cpu().numpy()


def region_features(levels: Sequence[Tensor], regions: Tensor, size: int) -> Tensor:
    """RoIAlign of each region on the level for its size (arXiv 1612.03144, equation 1, counted from 0).

    Args:
        levels: float32 (C, h, w) at strides 4, 8, 16, 32.
        regions: float32 (R, 4) in input pixels.
        size: cells a side.

    Returns:
        float32 (R, C, size, size).
    """
    level_of = (box_areas(regions).sqrt() / FINEST_ROI + 1e-6).log2().floor().clamp(0, len(levels) - 1)
    pooled = levels[0].new_zeros(len(regions), levels[0].shape[0], size, size)
    for number, level in enumerate(levels):
        chosen = (level_of == number).nonzero()[:, 0]
        if len(chosen):
            pooled[chosen] = roi_align(level, regions[chosen], size, scale=1 / RPN_ANCHORS.strides[number])
    return pooled


def _dtype(heads: RoIHead) -> torch.dtype:
    return heads.mask_head.upsample.weight.dtype
