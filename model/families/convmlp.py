"""The ConvMLP backbone (arXiv 2109.04454)."""

from __future__ import annotations

from pydantic import PositiveInt

from model.families.registry import BackboneFamily, BackboneSpec


class ConvMLPSpec(BackboneSpec):
    """ConvMLP: a conv tokenizer (stride 4), one conv stage (to stride 8), three conv-MLP stages (8, 16, 32).

    Feature levels are at strides 4, 8, 16 and 32.
    """

    tokenizer_channels: PositiveInt
    conv_blocks: PositiveInt
    stage_channels: tuple[PositiveInt, PositiveInt, PositiveInt]
    stage_depths: tuple[PositiveInt, PositiveInt, PositiveInt]
    mlp_ratios: tuple[PositiveInt, PositiveInt, PositiveInt]

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        return (self.tokenizer_channels, *self.stage_channels)


CONVMLP_SIZES = {
    "s": ConvMLPSpec(
        tokenizer_channels=64,
        conv_blocks=2,
        stage_channels=(128, 256, 512),
        stage_depths=(2, 4, 2),
        mlp_ratios=(2, 2, 2),
    ),
    "m": ConvMLPSpec(
        tokenizer_channels=64,
        conv_blocks=3,
        stage_channels=(128, 256, 512),
        stage_depths=(3, 6, 3),
        mlp_ratios=(3, 3, 3),
    ),
    "l": ConvMLPSpec(
        tokenizer_channels=96,
        conv_blocks=3,
        stage_channels=(192, 384, 768),
        stage_depths=(4, 8, 3),
        mlp_ratios=(3, 3, 3),
    ),
}
"""Table 1 of the paper."""

CONVMLP = BackboneFamily(name="convmlp", spec=ConvMLPSpec, sizes=CONVMLP_SIZES, network="model.net.convmlp:NETWORK")
