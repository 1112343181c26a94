"""Operators of the detectors that ONNX has of its own, for the export.

They are for tracing alone: what they compute is of the right shape, and nothing of it is in the traced graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Graph = Any
"""torch's builder of ONNX graphs, and its values, have no public types."""


def non_max_suppression(
    boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int
) -> Tensor:
    """Greedy NMS of one picture, in one group.

    Args:
        boxes: float32 (n, 4) as xmin, ymin, xmax, ymax.
        scores: float32 (n,).
        iou_threshold: a kept, better box suppresses those that overlap it by more.
        score_threshold: only boxes that score above it take part.
        limit: number of boxes to keep.

    Returns:
        int64 (k,), k <= limit: indices of the kept boxes by falling score.
    """
    apply: Callable[..., Tensor] = _NonMaxSuppression.apply
    return apply(boxes, scores, iou_threshold, score_threshold, limit)


def roi_align(features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
    """RoIAlign with aligned=True and as many samples as fit (`model/net/detection_ops.py` has its definition).

    Args:
        features: float32 (1, C, H, W).
        rois: float32 (R, 4) in input pixels.
        size: side of the grid, in cells.
        scale: feature cells per input pixel.

    Returns:
        float32 (R, C, size, size).
    """
    apply: Callable[..., Tensor] = _RoIAlign.apply
    return apply(features, rois, size, scale)


def top_k(scores: Tensor, limit: int) -> Tensor:
    """Positions of the best scores along axis 1, by falling score: (1, n) → int64 (1, min(limit, n)).

    ONNX's operator orders equal scores by position, as `best_first` does.
    """
    count = torch.minimum(torch.tensor(limit), torch.as_tensor(scores.shape[1]))
    return scores.topk(count, dim=1).indices  # type: ignore[arg-type]


class _NonMaxSuppression(torch.autograd.Function):
    @staticmethod
    def forward(
        _: object, boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, limit: int
    ) -> Tensor:
        del scores, iou_threshold, score_threshold
        return torch.zeros(min(limit, boxes.shape[0]), dtype=torch.int64)

    @staticmethod
    def symbolic(
        g: Graph, boxes: Graph, scores: Graph, iou_threshold: float, score_threshold: float, limit: int
    ) -> Graph:
        def constant(value: object, dtype: torch.dtype) -> Graph:
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        zero = constant([0], torch.int64)
        selected = g.op(
            "NonMaxSuppression",
            g.op("Unsqueeze", boxes, zero),
            g.op("Unsqueeze", scores, constant([0, 1], torch.int64)),
            constant([limit], torch.int64),
            constant([iou_threshold], torch.float32),
            constant([score_threshold], torch.float32),
        )  # rows of picture, group, box
        return g.op("Gather", selected, constant(2, torch.int64), axis_i=1)


class _RoIAlign(torch.autograd.Function):
    @staticmethod
    def forward(_: object, features: Tensor, rois: Tensor, size: int, scale: float) -> Tensor:
        del scale
        return torch.zeros(rois.shape[0], features.shape[1], size, size)

    @staticmethod
    def symbolic(g: Graph, features: Graph, rois: Graph, size: int, scale: float) -> Graph:
        count = g.op("Slice", g.op("Shape", rois), *(g.op("Constant", value_t=torch.tensor([at])) for at in (0, 1)))
        picture = g.op("ConstantOfShape", count, value_t=torch.tensor([0]))
        return g.op(
            "RoiAlign",
            features,
            rois,
            picture,
            coordinate_transformation_mode_s="half_pixel",
            mode_s="avg",
            output_height_i=size,
            output_width_i=size,
            sampling_ratio_i=0,
            spatial_scale_f=scale,
        )


class AdaptiveAveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` of a square output as two matrix products: ONNX has no such operator for inputs of any
    size. (N, C, H, W) → (N, C, size, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._weights(torch.as_tensor(length), x) for length in x.shape[2:])
        out: Tensor = rows @ x @ columns.transpose(0, 1)
        return out

    def _weights(self, length: Tensor, like: Tensor) -> Tensor:
        """The share of each position in each mean: (size, length)."""
        cell = torch.arange(self.size, device=like.device)[:, None]
        at = torch.arange(length, device=like.device)  # type: ignore[call-overload]
        start, stop = cell * length // self.size, ((cell + 1) * length + self.size - 1) // self.size
        share: Tensor = ((at >= start) & (at < stop)).to(like.dtype) / (stop - start)
        return share


def replace_pooling(network: nn.Module) -> None:
    """Replace, in place, each adaptive average pooling by one that can be exported."""
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.AdaptiveAvgPool2d):
                assert isinstance(module.output_size, int)
                setattr(parent, name, AdaptiveAveragePool(module.output_size))


def resize(x: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """(N, C, h, w) → (N, C, height, width), bilinear, align_corners=False; the size may be known at run time only."""
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)  # type: ignore[arg-type]
