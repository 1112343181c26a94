"""The CMT backbone (arXiv 2107.06263)."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from model.families.registry import BackboneFamily, BackboneSpec

Quad = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]


class CMTSpec(BackboneSpec):
    """CMT: a stem of three convolutions, and four stages of blocks of convolution, attention and feed-forward.

    Each stage has one learnt table of position biases, over absolute positions: a network has one input size.
    `hidden_channels` are those of the feed-forward parts.
    """

    family: Literal["cmt"] = "cmt"
    input_size: PositiveInt
    stem_channels: PositiveInt
    stage_channels: Quad
    stage_depths: Quad
    hidden_channels: Quad
    stage_heads: Quad = (1, 2, 4, 8)
    reductions: Quad = (8, 4, 2, 1)
    projection_channels: PositiveInt = 1280

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        return self.stage_channels

    @property
    def embedding_dimension(self) -> int:
        return self.projection_channels

    @property
    def input_side(self) -> int:
        return self.input_size


def _spec(
    input_size: int, stem: int, channels: int, depths: tuple[int, int, int, int], mlp_ratio: float = 4.0
) -> CMTSpec:
    first, second, third, fourth = (channels, 2 * channels, 4 * channels, 8 * channels)
    return CMTSpec(
        input_size=input_size,
        stem_channels=stem,
        stage_channels=(first, second, third, fourth),
        stage_depths=depths,
        hidden_channels=(
            int(first * mlp_ratio),
            int(second * mlp_ratio),
            int(third * mlp_ratio),
            int(fourth * mlp_ratio),
        ),
    )


CMT_SIZES = {
    "ti": _spec(160, 16, 46, (2, 2, 10, 2), 3.6),
    "xs": _spec(192, 16, 52, (3, 3, 12, 3), 3.77),
    "s": _spec(224, 32, 64, (3, 3, 16, 3)),
    "b": _spec(256, 38, 76, (4, 4, 20, 4)),
}
"""Those of the authors' code."""

CMT = BackboneFamily(name="cmt", spec=CMTSpec, sizes=CMT_SIZES, network="model.net.cmt:NETWORK")
