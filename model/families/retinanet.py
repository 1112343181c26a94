"""RetinaNet (arXiv 1708.02002)."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from model.families.registry import ArchitectureSpec, ModelFamily
from model.spec import DetectPostSpec, KeepRatioSpec
from model.types import Task


class RetinaNetSpec(ArchitectureSpec):
    """RetinaNet on an FPN over levels 8, 16, 32 with two more strided levels (arXiv 1708.02002)."""

    family: Literal["retinanet"] = "retinanet"
    fpn_channels: PositiveInt = 256
    head_convs: PositiveInt = 4


RETINANET = ModelFamily(
    name="retinanet",
    task=Task.DETECT,
    spec=RetinaNetSpec,
    preprocessing=KeepRatioSpec(long_side=1333, short_side=800, pad_multiple=32),  # as on COCO
    postprocessing=DetectPostSpec(),
    network="model.net.retinanet:NETWORK",
)
