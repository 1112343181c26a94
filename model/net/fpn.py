"""The feature pyramid network (arXiv 1612.03144, section 3), and the convolution that necks and heads are made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ConvModule(nn.Module):
    """Convolution that keeps the size (stride 1) or halves it (stride 2), then batch norm and ReLU where wanted.

    The parts are named as in the toolboxes' checkpoints: `conv` and `bn`. With batch norm there is no bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        norm: bool = False,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=not norm)
        self.bn = nn.BatchNorm2d(out_channels) if norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class FPN(nn.Module):
    """Feature levels, finest first, to as many maps of `channels` channels, and `extra_levels` coarser ones.

    Top-down path by nearest neighbour to the finer map's exact size. The first extra level is a strided
    convolution of the coarsest input, the next one of the level before, without a ReLU between them.
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
