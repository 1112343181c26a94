"""Mask R-CNN (arXiv 1703.06870)."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from model.families.registry import ArchitectureSpec, ModelFamily
from model.spec import DetectPostSpec, KeepRatioSpec
from model.types import Task


class MaskRCNNSpec(ArchitectureSpec):
    """Mask R-CNN on an FPN over levels 4, 8, 16, 32 with one pooled level (arXiv 1703.06870)."""

    family: Literal["mask_rcnn"] = "mask_rcnn"
    fpn_channels: PositiveInt = 256
    fc_channels: PositiveInt = 1024
    mask_convs: PositiveInt = 4


MASK_RCNN = ModelFamily(
    name="mask_rcnn",
    task=Task.DETECT,
    spec=MaskRCNNSpec,
    preprocessing=KeepRatioSpec(long_side=1333, short_side=800, pad_multiple=32),  # as on COCO
    postprocessing=DetectPostSpec(),
    network="model.net.mask_rcnn:NETWORK",
    masks=True,
)
