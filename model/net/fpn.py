"""The feature pyramid network (arXiv 1612.03144, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from model.net.layers import ConvModule


class FPN(nn.Module):
    """Feature levels, finest first → as many maps of `channels` channels, plus `extra_levels` coarser ones.

    The top-down path upsamples by nearest neighbour to the finer map's exact size. The first extra level is a strided
    convolution of the coarsest input level; each other one, of the extra level before it, without a ReLU.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, extra_levels: int = 0) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(wide, channels, 1) for wide in in_channels)
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in in_channels)
        for index in range(extra_levels):
            wide = in_channels[-1] if index == 0 else channels
            self.fpn_convs.append(ConvModule(wide, channels, 3, stride=2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels (N, C_i, H_i, W_i) → maps (N, channels, H_i, W_i), then the extra ones, each half the size."""
        merged = [lateral(level) for lateral, level in zip(self.lateral_convs, levels, strict=True)]
        for index in range(len(merged) - 1, 0, -1):
            finer = merged[index - 1]
            merged[index - 1] = finer + F.interpolate(merged[index], size=finer.shape[-2:], mode="nearest")
        out = [conv(level) for conv, level in zip(self.fpn_convs, merged, strict=False)]
        coarsest = levels[-1]
        for conv in list(self.fpn_convs)[len(merged) :]:
            coarsest = conv(coarsest)
            out.append(coarsest)
        return out
