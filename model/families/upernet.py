"""UPerNet (arXiv 1807.10221)."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from model.families.registry import ArchitectureSpec, ModelFamily
from model.spec import KeepRatioSpec, SegmentPostSpec
from model.types import Task


class UPerNetSpec(ArchitectureSpec):
    """UPerNet: a pyramid pooling of the coarsest level, a feature pyramid, and all its levels side by side."""

    family: Literal["upernet"] = "upernet"
    head_channels: PositiveInt = 512


UPERNET = ModelFamily(
    name="upernet",
    task=Task.SEGMENT,
    spec=UPerNetSpec,
    preprocessing=KeepRatioSpec(long_side=2048, short_side=512),  # as on ADE20K
    postprocessing=SegmentPostSpec(),
    network="model.net.upernet:NETWORK",
)
