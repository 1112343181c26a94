"""From grey levels to what a network was trained on, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.spec import CenterCropSpec, Preprocessing
from model.types import Size

CHANNELS = 3


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
            scaled = torch.tensor(values, dtype=torch.float64) / self._levels
            self.register_buffer(name, scaled.float())

    def forward(self, pixels: Tensor, contents: Sequence[Size] | None = None) -> Tensor:
        """uint8 (N, h, w, 3) RGB → float32 (N, 3, h, w), channels last in memory.

        Beyond its row of `contents`, to the right and below, a row is zero: padding follows normalisation.
        """
        width = pixels.shape[2]
        # Rows as they lie in memory: an axis of three channels would be much slower.
        x = pixels.flatten(2).float().div_(self._levels)
        x.sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        for row, content in zip(x, contents or (), strict=False):
            row[content.height :] = 0
            row[:, content.width * CHANNELS :] = 0
        return x.reshape(len(x), -1, width, CHANNELS).permute(0, 3, 1, 2)
