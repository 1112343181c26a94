"""Normalisation on the device: grey levels → network input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.spec import CenterCropSpec, Preprocessing
from model.types import Size

CHANNELS = 3


class Normalise(nn.Module):
    """(x - mean) / std per channel, with float32 constants.

    The order of operations is that of the toolbox that trained the network, so that inputs are equal bit for bit:
    timm first scales grey levels to 0..1, mmcv does not.
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
        """uint8 (N, h, w, 3) RGB → float32 (N, 3, h, w), channels-last in memory.

        `contents` are the rows' sizes without padding; the padding, right and bottom, is zero after normalisation.
        """
        width = pixels.shape[2]
        # Work on rows of width · 3 values: an axis of three channels is much slower.
        x = pixels.flatten(2).float().div_(self._levels)
        x.sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        for row, content in enumerate(contents or ()):
            x[row, content.height :] = 0
            x[row, :, content.width * CHANNELS :] = 0
        return x.reshape(x.shape[0], -1, width, CHANNELS).permute(0, 3, 1, 2)
