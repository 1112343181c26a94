"""Semantic FPN (arXiv 1901.02446)."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from model.families.registry import ArchitectureSpec, ModelFamily
from model.spec import KeepRatioSpec, SegmentPostSpec
from model.types import Task


class SemanticFPNSpec(ArchitectureSpec):
    """Semantic FPN: one upsampling branch a level, summed at stride 4 (arXiv 1901.02446)."""

    family: Literal["semantic_fpn"] = "semantic_fpn"
    fpn_channels: PositiveInt = 256
    head_channels: PositiveInt = 128


SEMANTIC_FPN = ModelFamily(
    name="semantic_fpn",
    task=Task.SEGMENT,
    spec=SemanticFPNSpec,
    preprocessing=KeepRatioSpec(long_side=2048, short_side=512),  # as on ADE20K
    postprocessing=SegmentPostSpec(),
    network="model.net.semantic_fpn:NETWORK",
)
