"""The Hire-MLP backbone (arXiv 2108.13341)."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from model.families.registry import BackboneFamily, BackboneSpec
from model.spec import CenterCropSpec

Quad = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]


class HireMLPSpec(BackboneSpec):
    """Hire-MLP: a 7x7 patch embedding and four stages of blocks that mix regions of rows and of columns.

    In stage i, block j moves the map by (j modulo `shift_periods[i]`) · `shift_steps[i]` positions before it is cut
    into regions of `region_sizes[i]` rows, or columns. Inputs may have any size.
    """

    family: Literal["hire_mlp"] = "hire_mlp"
    stage_channels: Quad
    stage_depths: Quad
    mlp_ratio: PositiveInt = 4
    region_sizes: Quad = (4, 3, 3, 2)
    shift_periods: Quad = (2, 2, 3, 2)
    shift_steps: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt, NonNegativeInt] = (2, 2, 1, 1)

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        return self.stage_channels

    @property
    def classifier_preprocessing(self) -> CenterCropSpec:
        return CenterCropSpec(resize_shorter=256, crop=224)


_CHANNELS = (64, 128, 320, 512)
HIRE_MLP_SIZES = {
    "tiny": HireMLPSpec(stage_channels=_CHANNELS, stage_depths=(2, 2, 4, 2)),
    "small": HireMLPSpec(stage_channels=_CHANNELS, stage_depths=(3, 4, 10, 3)),
    "base": HireMLPSpec(stage_channels=_CHANNELS, stage_depths=(4, 6, 24, 3)),
    "large": HireMLPSpec(stage_channels=(96, 192, 384, 768), stage_depths=(4, 6, 24, 3)),
}
"""Those of the authors' code."""

HIRE_MLP = BackboneFamily(name="hire_mlp", spec=HireMLPSpec, sizes=HIRE_MLP_SIZES, network="model.net.hire_mlp:NETWORK")
