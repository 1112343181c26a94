"""The RepMLPNet backbone (arXiv 2112.11081)."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from model.families.registry import BackboneFamily, BackboneSpec
from model.spec import CenterCropSpec

Quad = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
STEM_STRIDE = 4


class RepMLPNetSpec(BackboneSpec):
    """RepMLPNet: blocks of a fully connected layer over the positions of a partition, and of a channel MLP.

    In stage i the map is cut into partitions of `partitions[i]` x `partitions[i]` positions; their channels share
    `share_sets[i]` sets of weights. `deploy`: the convolutions that training adds inside partitions are merged into the
    fully connected layers.
    """

    family: Literal["repmlpnet"] = "repmlpnet"
    stage_channels: Quad
    stage_depths: Quad
    share_sets: Quad
    partitions: Quad
    reduction: PositiveInt = 4
    mlp_ratio: PositiveInt = 4
    kernels: tuple[PositiveInt, ...] = (1, 3)
    deploy: bool = False

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        return self.stage_channels

    @property
    def training_side(self) -> int:
        """The side of the inputs that a map of one partition belongs to, px."""
        return STEM_STRIDE * self.partitions[0]

    @property
    def input_multiple(self) -> int:
        return self.training_side

    @property
    def classifier_preprocessing(self) -> CenterCropSpec:
        side = self.training_side
        return CenterCropSpec(resize_shorter=side, crop=side, interpolation="bilinear")

    @property
    def published_form(self) -> RepMLPNetSpec:
        return self.model_copy(update={"deploy": False})


def _spec(channels: int, third_depth: int, share_sets: tuple[int, int, int, int], side: int) -> RepMLPNetSpec:
    cells = side // STEM_STRIDE
    return RepMLPNetSpec(
        stage_channels=(channels, 2 * channels, 4 * channels, 8 * channels),
        stage_depths=(2, 2, third_depth, 2),
        share_sets=share_sets,
        partitions=(cells, cells // 2, cells // 4, cells // 8),
    )


REPMLPNET_SIZES = {
    "t224": _spec(64, 6, (1, 4, 16, 128), 224),
    "b224": _spec(96, 12, (1, 4, 32, 128), 224),
    "t256": _spec(64, 6, (1, 4, 16, 128), 256),
    "b256": _spec(96, 12, (1, 4, 32, 128), 256),
    "d256": _spec(80, 18, (1, 4, 16, 128), 256),
    "l256": _spec(96, 18, (1, 4, 32, 256), 256),
}
"""Those of the authors' code."""

REPMLPNET = BackboneFamily(
    name="repmlpnet", spec=RepMLPNetSpec, sizes=REPMLPNET_SIZES, network="model.net.repmlpnet:NETWORK"
)
