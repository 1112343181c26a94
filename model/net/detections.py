"""Steps that detectors share at test time: candidates of a level, coordinate geometry, outputs on the host.

Numbers that are not finite never get lost on the way: NaN ranks above every score, passes every threshold and is
suppressed by no box, and infinity becomes NaN. So an output is finite only if all that decided about it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.net.boxes import AnchorSpec, clip_boxes, decode_deltas
from model.net.detection_ops import grouped_nms
from model.spec import DetectPostSpec
from model.types import DetectOutput, Geometry, QueryParams


@dataclass(frozen=True, slots=True)
class BatchGeometry:
    """The geometry of each row of a batch, for tensors of boxes: both float32 (N, 1, 4) as x, y, x, y.

    `limits` is the size without padding, in input pixels. `scales` is input pixels per picture pixel.
    """

    limits: Tensor
    scales: Tensor

    @classmethod
    def of(cls, geometries: Sequence[Geometry], device: torch.device) -> BatchGeometry:
        limits = [[geometry.content.width, geometry.content.height] * 2 for geometry in geometries]
        scales = [[geometry.scale_x, geometry.scale_y] * 2 for geometry in geometries]
        return cls(
            torch.tensor(limits, dtype=torch.float32, device=device)[:, None],
            torch.tensor(scales, dtype=torch.float32, device=device)[:, None],
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """Boxes (N, k, 4) in input pixels, clipped, with scores (N, k) float32 and classes (N, k) int64.

    Scores and boxes of logits and deltas that are not finite are NaN.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def best_first(scores: Tensor, limit: int) -> Tensor:
    """Positions of the best scores along axis 1, by falling score, NaN first: (N, n) → int64 (N, min(limit, n)).

    Equal scores are ordered by position. torch.topk breaks ties in no defined order, which changes with the batch
    size; it gets unique keys instead: the score's bits as an integer of the same order, then the position.
    """
    scores = scores.float()
    bits = (scores + 0.0).view(torch.int32)  # adding 0.0 turns -0.0 into 0.0
    ordered = (bits ^ ((bits >> 31) & 0x7FFF_FFFF)).masked_fill_(scores.isnan(), 0x7FFF_FFFF)
    positions = torch.arange(scores.shape[1], device=scores.device)
    keys = (ordered.long() << 32) | (0xFFFF_FFFF - positions)
    return keys.topk(min(limit, scores.shape[1]), dim=1).indices


TopK = Callable[[Tensor, int], Tensor]


def level_candidates(
    logits: Tensor,
    deltas: Tensor,
    anchors: AnchorSpec,
    level: int,
    geometry: BatchGeometry,
    limit: int,
    top_k: TopK = best_first,
) -> Candidates:
    """The `limit` best-scored (anchor, class) pairs of one level, by falling score, NaN first.

    Equal scores are ordered by position, anchor, class, whatever the batch.

    Args:
        logits: (N, A·classes, h, w), channel a·classes + c.
        deltas: (N, A·4, h, w).
        anchors: the deltas are relative to them.
        level: index of the level in `anchors`.
        geometry: boxes are clipped to its `limits`.
        limit: number of pairs.
        top_k: what finds the best along axis 1; ONNX has an operator of its own for it.
    """
    height, width = logits.shape[-2:]
    num_classes = logits.shape[1] // anchors.per_position
    pairs = _by_anchor(logits, num_classes)
    # The best `limit` pairs belong to the best `limit` anchors, so not all pairs need sorting.
    best = top_k(pairs.amax(dim=2), limit).sort(dim=1).values
    pairs = pairs.gather(1, best[..., None].expand(-1, -1, num_classes)).flatten(1)
    chosen = top_k(pairs, limit)
    anchor = best.gather(1, chosen // num_classes)
    priors = anchors.level_anchors(level, (height, width), logits.device)[anchor]
    moves = _by_anchor(deltas, 4).gather(1, anchor[..., None].expand(-1, -1, 4)).float()
    return Candidates(
        boxes=clip_boxes(decode_deltas(priors, nan_unless_finite(moves)), geometry.limits),
        scores=nan_unless_finite(pairs.gather(1, chosen).float()).sigmoid(),
        classes=chosen % num_classes,
    )


def nan_unless_finite(x: Tensor) -> Tensor:
    """`x`, with NaN for infinity, which a sigmoid or a clamp would turn into an ordinary number."""
    return x + (x - x)


def _by_anchor(x: Tensor, values: int) -> Tensor:
    """(N, A·values, h, w) → (N, h·w·A, values)."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)


def best_detections(
    boxes: Tensor, scores: Tensor, classes: Tensor, params: Sequence[QueryParams], spec: DetectPostSpec
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each row's detections among candidates, by falling score: those above its threshold or not finite and of its
    classes, after NMS per class or over all classes, that are large enough.

    Areas are compared after NMS: what a better, smaller box suppressed is another box of the same object.

    Args:
        boxes: (N, n, 4) in picture pixels.
        scores: (N, n).
        classes: (N, n).
        params: of each row. What they leave open is the model's.
        spec: of the model.

    Returns:
        boxes (N, k, 4), scores (N, k) and classes (N, k), k the largest `max_detections` or fewer; bool (N, k): which
        of them are detections; these come first.
    """
    device = scores.device
    thresholds = [spec.score_threshold if row.score_threshold is None else row.score_threshold for row in params]
    valid = ~(scores <= torch.tensor(thresholds, dtype=torch.float32, device=device)[:, None])
    valid &= _wanted(classes, params) | scores.isnan()
    overlaps = [spec.nms_iou if row.iou_threshold is None else row.iou_threshold for row in params]
    agnostic = torch.tensor([row.agnostic_nms for row in params], device=device)
    limit = max(row.max_detections for row in params)
    least = [row.min_area for row in params]
    kept, filled = grouped_nms(
        boxes,
        scores,
        classes.masked_fill(agnostic[:, None], 0),
        valid,
        torch.tensor(overlaps, dtype=torch.float32, device=device),
        max(limit, int(valid.sum(dim=1).amax())) if any(least) else limit,
    )
    if any(least):
        small = (boxes[..., 2:] - boxes[..., :2]).prod(dim=2) < torch.tensor(least, device=device)[:, None]
        filled &= ~(small & ~scores.isnan()).gather(1, kept)
        filled, first = filled.sort(dim=1, descending=True, stable=True)
        kept, filled = kept.gather(1, first)[:, :limit], filled[:, :limit]
    corners = kept[..., None].expand(-1, -1, 4)
    return boxes.gather(1, corners), scores.gather(1, kept), classes.gather(1, kept), filled


def _wanted(classes: Tensor, params: Sequence[QueryParams]) -> Tensor:
    """Which candidates have one of their row's classes: bool (N, n)."""
    wanted = torch.ones_like(classes, dtype=torch.bool)
    for row, row_params in enumerate(params):
        if row_params.classes is not None:
            wanted[row] = torch.isin(classes[row], torch.tensor(row_params.classes, device=classes.device))
    return wanted


def detect_outputs(
    boxes: Tensor, scores: Tensor, classes: Tensor, filled: Tensor, params: Sequence[QueryParams]
) -> list[DetectOutput]:
    """Detections without masks on the host, at most `max_detections` of each row.

    Args:
        boxes: (N, k, 4) in picture pixels, rows by falling score.
        scores: (N, k).
        classes: (N, k).
        filled: bool (N, k): which entries are detections; these come first.
        params: of each row.
    """
    counts = filled.sum(dim=1).tolist()
    host_boxes, host_scores, host_classes = (x.cpu().numpy() for x in (boxes, scores, classes))
    outputs = []
    for row, (count, row_params) in enumerate(zip(counts, params, strict=True)):
        kept = slice(min(count, row_params.max_detections))
        outputs.append(DetectOutput(host_boxes[row, kept], host_scores[row, kept], host_classes[row, kept], None))
    return outputs
