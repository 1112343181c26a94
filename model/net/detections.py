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
