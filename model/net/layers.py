"""Layers that networks share. The CPU's operators (`model/net/cpu/onednn.py`) replace each of them as a whole."""

from __future__ import annotations

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


class ChannelMLP(nn.Module):
    """Two linear layers with exact GELU, over the last axis, and the sum with the residual."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = residual + self.fc2(self.act(self.fc1(x)))
        return out
