"""What an ONNX file computes: from the resized picture to the answer, normalisation and box operations included.

Modules are made to be traced: sizes are known at run time only, and only ONNX's operators are used. Pictures are uint8
(N, h, w, 3), RGB, as the documented resizing makes them, without padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.bundle import BundleConfig
from model.net.boxes import RETINANET_ANCHORS, RPN_ANCHORS, box_areas, clip_boxes, decode_deltas
from model.net.detection_ops import separate_groups
from model.net.detections import BatchGeometry, Candidates, level_candidates
from model.net.label_maps import MAX_UINT8_CLASSES
from model.net.mask_rcnn import BOX_GRID, BOX_STDS, FINEST_ROI_SIZE, MASK_GRID, MaskRCNN
from model.net.normalise import Normalise
from model.net.retinanet import RetinaNet
from model.onnx.operators import non_max_suppression, replace_pooling, resize, roi_align, top_k
from model.spec import ClassifyPostSpec, DetectPostSpec, PaddedSpec
from model.types import QueryParams, Task

MAX_DETECTIONS = QueryParams().max_detections


@dataclass(frozen=True, slots=True)
class Signature:
    """Names of a graph's inputs and outputs, and of their axes whose length is known at run time only."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]


BATCH = {0: "batch"}
PICTURE = {1: "height", 2: "width"}
FOUND = {0: "detections"}


class ClassifierGraph(nn.Module):
    """`image` (N, crop, crop, 3) → `scores` float32 (N, classes): probabilities."""

    signature = Signature(("image",), ("scores",), {"image": BATCH, "scores": BATCH})

    def __init__(self, network: nn.Module, config: BundleConfig) -> None:
        super().__init__()
        assert isinstance(config.postprocessing, ClassifyPostSpec)
        self.network, self.normalise = network, Normalise(config.preprocessing)
        self.softmax = config.postprocessing.activation == "softmax"

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(self.normalise(image))
        return logits.softmax(dim=1) if self.softmax else logits.sigmoid()


class PaddedInput(nn.Module):
    """`image` (N, h, w, 3) → normalised float32 (N, 3, H, W), padded with zeros to the multiple of the pipeline."""

    def __init__(self, config: BundleConfig) -> None:
        super().__init__()
        assert isinstance(config.preprocessing, PaddedSpec)
        self.normalise, self.multiple = Normalise(config.preprocessing), config.preprocessing.pad_multiple

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:3]
        x: Tensor = self.normalise(image)
        return F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))


class SegmenterGraph(nn.Module):
    """`image` (N, h, w, 3), `size` int64 (2,) → `label_map` (N, height, width): the class of each pixel.

    `size` is the height and width of the label map: the picture's, before it was resized. The label map is uint8, or
    int32 beyond 256 classes.
    """

    signature = Signature(
        ("image", "size"), ("label_map",), {"image": BATCH | PICTURE, "label_map": BATCH | {1: "rows", 2: "columns"}}
    )

    def __init__(self, network: nn.Module, config: BundleConfig) -> None:
        super().__init__()
        replace_pooling(network)
        self.network, self.padded = network, PaddedInput(config)
        self.dtype = torch.uint8 if len(config.labels) <= MAX_UINT8_CLASSES else torch.int32

    def forward(self, image: Tensor, size: Tensor) -> Tensor:
        x = self.padded(image)
        at_input = resize(self.network(x), *x.shape[2:])[:, :, : image.shape[1], : image.shape[2]]
        return resize(at_input, size[0], size[1]).argmax(dim=1).to(self.dtype)


DETECTIONS = {"image": PICTURE, "boxes": FOUND, "scores": FOUND, "labels": FOUND}


class RetinaNetGraph(nn.Module):
    """`image` (1, h, w, 3), `size` int64 (2,) → at most 100 detections by falling score: `boxes`, `scores`, `labels`.

    Boxes are float32 (n, 4) as xmin, ymin, xmax, ymax, scores float32 (n,), labels int64 (n,). `size` is the picture's
    height and width, before it was resized; boxes are in its pixels.
    """

    signature = Signature(("image", "size"), ("boxes", "scores", "labels"), DETECTIONS)

    def __init__(self, network: RetinaNet, config: BundleConfig) -> None:
        super().__init__()
        assert isinstance(config.postprocessing, DetectPostSpec)
        self.network, self.padded, self.spec = network, PaddedInput(config), config.postprocessing

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        geometry = _geometry(image, size)
        logits, deltas = self.network(self.padded(image))
        levels = [
            level_candidates(*level, RETINANET_ANCHORS, number, geometry, self.spec.candidates_per_level, top_k)
            for number, level in enumerate(zip(logits, deltas, strict=True))
        ]
        found = _joined(levels)
        boxes, scores, classes = (found.boxes / geometry.scales)[0], found.scores[0], found.classes[0]
        kept = _nms(boxes, scores, classes, self.spec.nms_iou, self.spec.score_threshold, MAX_DETECTIONS)
        return boxes[kept], scores[kept], classes[kept]


class MaskRCNNGraph(nn.Module):
    """As `RetinaNetGraph`, with `masks` float32 (n, 28, 28): the mask's probability, spread evenly over the box."""

    signature = Signature(("image", "size"), ("boxes", "scores", "labels", "masks"), DETECTIONS | {"masks": FOUND})

    def __init__(self, network: MaskRCNN, config: BundleConfig) -> None:
        super().__init__()
        assert isinstance(config.postprocessing, DetectPostSpec)
        self.network, self.padded, self.spec = network, PaddedInput(config), config.postprocessing

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        spec, geometry = self.spec, _geometry(image, size)
        pyramid, logits, deltas = self.network(self.padded(image))
        regions = self._proposals(logits, deltas, geometry)
        class_logits, moves = self.network.roi_head.bbox_head(_roi_features(pyramid, regions, BOX_GRID))
        probabilities = class_logits.softmax(dim=1)[:, :-1]
        region, label = (probabilities > spec.score_threshold).nonzero().unbind(dim=1)
        scores = probabilities[region, label]
        moves = moves.unflatten(1, (-1, 4))[region, label]
        clipped = clip_boxes(decode_deltas(regions[region], moves, BOX_STDS), geometry.limits[0])
        boxes = clipped / geometry.scales[0]
        kept = _nms(boxes, scores, label, spec.nms_iou, spec.score_threshold, MAX_DETECTIONS)
        boxes, scores, label = boxes[kept], scores[kept], label[kept]
        features = _roi_features(pyramid, boxes * geometry.scales[0], MASK_GRID)
        masks = self.network.roi_head.mask_head(features).sigmoid()
        of_class = label[:, None, None, None].expand(-1, 1, *masks.shape[2:])
        return boxes, scores, label, masks.gather(1, of_class)[:, 0]

    def _proposals(self, logits: list[Tensor], deltas: list[Tensor], geometry: BatchGeometry) -> Tensor:
        """The RPN's proposals by falling score: (R, 4) in input pixels."""
        spec = self.spec
        levels = [
            level_candidates(*level, RPN_ANCHORS, number, geometry, spec.candidates_per_level, top_k)
            for number, level in enumerate(zip(logits, deltas, strict=True))
        ]
        found = _joined(levels)
        boxes, scores = found.boxes[0], found.scores[0]
        numbers = torch.cat([level.classes[0] + number for number, level in enumerate(levels)])
        # A score is never negative, so this threshold leaves out only the boxes without area.
        ranked = torch.where((boxes[:, 2:] > boxes[:, :2]).all(dim=1), scores, -2.0)
        return boxes[_nms(boxes, ranked, numbers, spec.proposal_nms_iou, -1.0, spec.proposals)]


Graph = ClassifierGraph | SegmenterGraph | RetinaNetGraph | MaskRCNNGraph
GRAPHS: dict[str, Callable[[Any, BundleConfig], Graph]] = {
    "classifier": ClassifierGraph,
    "semantic_fpn": SegmenterGraph,
    "upernet": SegmenterGraph,
    "retinanet": RetinaNetGraph,
    "mask_rcnn": MaskRCNNGraph,
}
"""By family: from the network and its bundle's config."""


def _geometry(image: Tensor, size: Tensor) -> BatchGeometry:
    """Of a picture of `size`, height and width, that was resized to `image`."""
    height, width = (torch.as_tensor(side) for side in image.shape[1:3])
    limits = torch.stack((width, height, width, height)).float()
    return BatchGeometry(limits[None, None], (limits / size[[1, 0, 1, 0]].float())[None, None])


def _joined(levels: list[Candidates]) -> Candidates:
    return Candidates(
        torch.cat([level.boxes for level in levels], dim=1),
        torch.cat([level.scores for level in levels], dim=1),
        torch.cat([level.classes for level in levels], dim=1),
    )


def _nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float, score_threshold: float, limit: int
) -> Tensor:
    """The boxes (n, 4) kept in each group, by falling score."""
    valid = scores > score_threshold
    # A box of no extent at the end: there may be no other, and none has no largest coordinate.
    extended = F.pad(boxes, (0, 0, 0, 1))[None]
    shifted = separate_groups(extended, F.pad(groups, (0, 1))[None], F.pad(valid, (0, 1))[None])[0, :-1]
    return non_max_suppression(shifted, scores, iou_threshold, score_threshold, limit)


def _roi_features(levels: list[Tensor], regions: Tensor, size: int) -> Tensor:
    """RoIAlign of each region on the level for its size: levels (1, C, h, w), regions (R, 4) → (R, C, size, size)."""
    level_of = (box_areas(regions).sqrt() / FINEST_ROI_SIZE + 1e-6).log2().floor().clamp(0, len(levels) - 1)
    chosen = [(level_of == number).nonzero()[:, 0] for number in range(len(levels))]
    pooled = [
        roi_align(level, regions[of_level], size, 1 / stride)
        for level, of_level, stride in zip(levels, chosen, RPN_ANCHORS.strides, strict=False)
    ]
    # The order of the regions: where each one is among those that were taken level by level.
    at = torch.cat(chosen).argsort()
    return torch.cat(pooled)[at]


def example(config: BundleConfig) -> tuple[Tensor, ...]:
    """Inputs to trace a graph with.

    The sides are such that Hire-MLP's maps have regions that are not full, at all stages where they may have: branches
    of the code are fixed by the trace.
    """
    if config.task is Task.CLASSIFY:
        crop = config.preprocessing.crop  # type: ignore[union-attr]
        return (torch.zeros(2, crop, crop, 3, dtype=torch.uint8),)
    generator = torch.Generator().manual_seed(0)
    rows = 1 if config.task is Task.DETECT else 2
    image = torch.randint(0, 256, (rows, 160, 224, 3), dtype=torch.uint8, generator=generator)
    return image, torch.tensor((320, 448))
