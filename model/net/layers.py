"""Layers shared by networks. `model/net/cpu/onednn.py` replaces each of them as a whole."""

from __future__ import annotations

from torch import Tensor, nn


class ConvModule(nn.Module):
    """A convolution of stride 1 or 2, padded by half the kernel; batch norm and ReLU are optional.

    Parameter names are mmcv's: `conv` and `bn`. With batch norm the convolution has no bias.
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


class ChannelMLP(nn.Module):
    """Two linear layers over the last axis, exact GELU between them, plus the residual."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = residual + self.fc2(self.act(self.fc1(x)))
        return out
