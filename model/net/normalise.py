"""From grey levels to what a network was trained on, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.spec import Normalisation
from model.types import Size


class Normalise(nn.Module):
    """(x - mean) / std per channel, its constants held as float32 buffers."""

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, spec: Normalisation) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean, dtype=torch.float32)[:, None, None])
        std = torch.tensor(spec.std, dtype=torch.float64)[:, None, None]
        self.register_buffer("inverse_std", (1 / std).float())

    def forward(self, pixels: Tensor, contents: Sequence[Size] | None = None) -> Tensor:
        """uint8 (N, h, w, 3) RGB → float32 (N, 3, h, w), channels last in memory.

        Beyond its row of `contents`, to the right and below, a row is zero: padding follows normalisation.
        """
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) * self.inverse_std
        height, width = x.shape[-2:]
        if contents is None or all(one == Size(height, width) for one in contents):
            return x
        heights, widths = (
            torch.tensor(limits, device=x.device)[:, None]
            for limits in ([one.height for one in contents], [one.width for one in contents])
        )
        inside_y = torch.arange(height, device=x.device) < heights
        inside_x = torch.arange(width, device=x.device) < widths
        return x * (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
