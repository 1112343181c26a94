"""RetinaNet's test time: from dense scores and deltas to detections (arXiv 1708.02002, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.net.anchors import RETINANET_ANCHORS
from model.net.detections import Frames, detect_outputs, level_candidates
from model.net.nms import grouped_nms
from model.spec import DetectPostSpec
from model.types import DetectOutput, Geometry, QueryParams


def detections(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    geometries: Sequence[Geometry],
    params: Sequence[QueryParams],
    spec: DetectPostSpec,
) -> list[DetectOutput]:
    """What `RetinaNet` answered → detections of each row in pixels of its own picture.

    Scores strictly above the row's threshold, the best candidates of each level, boxes clipped to the input
    without padding, brought back to the picture, NMS per class there, the row's best `max_detections`.
    """
    frames = Frames.of(geometries, logits[0].device)
    levels = [
        level_candidates(scores, moves, RETINANET_ANCHORS, level, frames, spec.candidates_per_level)
        for level, (scores, moves) in enumerate(zip(logits, deltas, strict=True))
    ]
    boxes = torch.cat([level.boxes for level in levels], dim=1) / frames.scales
    scores = torch.cat([level.scores for level in levels], dim=1)
    classes = torch.cat([level.classes for level in levels], dim=1)
    thresholds = [spec.score_threshold if one.score_threshold is None else one.score_threshold for one in params]
    valid = scores > torch.tensor(thresholds, dtype=torch.float32, device=scores.device)[:, None]
    limit = max(one.max_detections for one in params)
    kept, filled = grouped_nms(boxes, scores, classes, valid, spec.nms_iou, limit)
    return detect_outputs(
        boxes.gather(1, kept[..., None].expand(-1, -1, 4)),
        scores.gather(1, kept),
        classes.gather(1, kept),
        filled,
        params,
    )
