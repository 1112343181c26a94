"""The HVT backbone (arXiv 2103.10619)."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from model.families.registry import BackboneFamily, BackboneSpec

HEAD_CHANNELS = 64


class HVTSpec(BackboneSpec):
    """HVT: a vision transformer that halves its sequence of patches, by max-pooling, after some of its blocks.

    The sequence is pooled row by row, so after the first pooling there is no map: HVT has no feature levels, and is
    for classifiers only. A network has one input size, that of its position embeddings.
    """

    family: Literal["hvt"] = "hvt"
    input_size: PositiveInt = 224
    patch: PositiveInt = 16
    channels: PositiveInt
    depth: PositiveInt = 12
    pooled_blocks: tuple[NonNegativeInt, ...]
    """The blocks, from 0, after which the sequence is pooled."""
    mlp_ratio: PositiveInt = 4

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        raise ValueError("HVT has no feature levels: it can be a classifier only")

    @property
    def embedding_dimension(self) -> int:
        return self.channels

    @property
    def has_levels(self) -> bool:
        return False

    @property
    def input_side(self) -> int:
        return self.input_size

    @property
    def lengths(self) -> tuple[int, ...]:
        """Patches in the sequence: at first, and after each pooling."""
        found = [(self.input_size // self.patch) ** 2]
        for _ in self.pooled_blocks:
            found.append((found[-1] - 3) // 2 + 1)
        return tuple(found)


HVT_SIZES = {
    "ti_1": HVTSpec(channels=192, pooled_blocks=(0,)),
    "scale_ti_4": HVTSpec(channels=384, pooled_blocks=(0, 3, 6, 9)),
    "s_0": HVTSpec(channels=384, pooled_blocks=()),
    "s_1": HVTSpec(channels=384, pooled_blocks=(0,)),
    "s_2": HVTSpec(channels=384, pooled_blocks=(0, 6)),
    "s_3": HVTSpec(channels=384, pooled_blocks=(0, 4, 8)),
}
"""Those of the authors' configurations; of S-0 there is none: its checkpoint has no pooling."""

HVT = BackboneFamily(name="hvt", spec=HVTSpec, sizes=HVT_SIZES, network="model.net.hvt:NETWORK")
