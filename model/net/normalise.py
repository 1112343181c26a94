"""From grey levels to what a network was trained on, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.spec import CenterCropSpec, Preprocessing
from model.types import Size


class Normalise(nn.Module):
    """(x - mean) / std per channel, its constants held as float32 buffers.

    In the order of operations of the toolbox that trained the network, so that inputs are equal to the last bit:
    timm first brings grey levels to 0..1, mmcv does not.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: Preprocessing) -> None:
        super().__init__()
        self._levels = 255 if isinstance(spec, CenterCropSpec) else 1
        for name, values in (("mean", spec.normalisation.mean), ("std", spec.normalisation.std)):
            scaled = torch.tensor(values, dtype=torch.float64)[:, None, None] / self._levels
            self.register_buffer(name, scaled.float())

    def forward(self, pixels: Tensor, contents: Sequence[Size] | None = None) -> Tensor:
        """uint8 (N, h, w, 3) RGB → float32 (N, 3, h, w), channels last in memory.

        Beyond its row of `contents`, to the right and below, a row is zero: padding follows normalisation.
        """
        x = (pixels.permute(0, 3, 1, 2).float() / self._levels - self.mean) / self.std
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
