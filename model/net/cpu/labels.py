"""The classes of a picture's pixels in one pass over the picture, by labels.h where it is compiled and the processor
has AVX-512 with bfloat16. torch takes 8 to 20 times as long: it writes the resized logits of all classes to memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.net.axis import Axis
from model.net.cpu.rows import AVAILABLE
from model.types import Size

if AVAILABLE:
    from model.net.cpu import _kernels

MOST_CLASSES = 256
FEW_CLASSES = 16
"""So many or fewer are computed for 16 pixels at a time; of more, 16 are computed at a time for each pixel."""
PADDING = -1e30


def labels_available(logits: Tensor) -> bool:
    """Whether `Labeller` takes logits (1, classes, h, w)."""
    return AVAILABLE and logits.device.type == "cpu" and logits.shape[1] <= MOST_CLASSES


class Labeller:
    """Labels a picture's rows, from coarse logits. Only where `labels_available`."""

    def __init__(
        self,
        logits: Tensor,
        input_size: Size,
        content: Size,
        picture: Size,
        labels: Tensor,
        levels: Tensor | None,
        odds: Tensor | None,
    ) -> None:
        """Logits (1, classes, h, w) are resized bilinearly to `input_size`, of which `content` is resized to `picture`.

        `labels` and `levels` are uint8 (H, W), `levels` 255 times the probability of the label; `odds` float32
        (classes,): 1 / probability - 1 is multiplied by them.
        """
        values = logits[0].permute(1, 2, 0).float()
        self._classes = values.shape[2]
        missing = 0 if self._classes <= FEW_CLASSES else -self._classes % FEW_CLASSES
        self._logits = F.pad(values, (0, missing), value=PADDING).contiguous()
        height, width, self._stride = self._logits.shape
        self._input_width = content.width
        self._axes = (
            _addressed(Axis.of(height, input_size.height, 0, content.height)),
            _addressed(Axis.of(width, input_size.width, 0, content.width), self._stride),
            _addressed(Axis.of(content.height, picture.height, 0, picture.height)),
            _addressed(Axis.of(content.width, picture.width, 0, picture.width), self._stride),
        )
        self._labels, self._levels, self._odds = labels, levels, odds

    def label(self, rows: slice) -> tuple[Tensor, Tensor, bool]:
        """Label some rows; any thread may label some of its own at the same time.

        Returns:
            for each class the number of its pixels, int64, and the sum of their probabilities, float64; and whether
            the highest logit of each pixel is finite.
        """
        counts = torch.zeros(self._classes, dtype=torch.int64)
        sums = torch.zeros(self._classes, dtype=torch.float64)
        down, across, picture_down, picture_across = (
            (low.data_ptr(), high.data_ptr(), weights.data_ptr()) for low, high, weights in self._axes
        )
        finite = _kernels.label_rows(
            *(self._logits.data_ptr(), self._logits.shape[1], self._classes, self._stride),
            *(down, across, self._input_width),
            *(picture_down, picture_across, self._labels.shape[1]),
            self._labels.data_ptr(),
            0 if self._levels is None else self._levels.data_ptr(),
            0 if self._odds is None else self._odds.data_ptr(),
            *(counts.data_ptr(), sums.data_ptr()),
            *(rows.start, rows.stop),
        )
        return counts, sums, finite


def _addressed(axis: Axis, step: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return (axis.low * step).int(), (axis.high * step).int(), axis.weights
