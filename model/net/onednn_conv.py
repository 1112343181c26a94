"""A convolution by oneDNN's own operator: the activation fused in, the weight laid out once for each size of input."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

KEPT_SIZES = 256
"""So many sizes of input are remembered a layer; a detector's pictures have many."""

_Size = tuple[torch.Size, int]


class Conv(nn.Module):
    """A convolution, with a ReLU after it where wanted: (N, C, H, W) → (N, D, H', W'), channels last in memory.

    Which layout of the weight is the fastest depends on the input's size and on the number of threads. In another one
    than that, oneDNN lays the weight out anew at each call, which can take a hundred times as long as the convolution.
    """

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple)
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._plain = conv.weight.detach()
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._relu = relu
        self._layouts: list[Tensor] = []
        self._layout_of: dict[_Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        activation = "relu" if self._relu else "none"
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight(x), self._bias, *self._geometry, activation, [], ""
        )
        return out

    def plus(self, x: Tensor, addend: Tensor) -> Tensor:
        """The sum of the convolution and another tensor of its shape, then the ReLU."""
        activation = "relu" if self._relu else None
        out: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, addend, self._weight(x), self._bias, *self._geometry, "add", 1.0, activation, [], ""
        )
        return out

    def _weight(self, x: Tensor) -> Tensor:
        size = (x.shape, torch.get_num_threads())
        found = self._layout_of.get(size)
        return self._lay_out(size) if found is None else found

    def _lay_out(self, size: _Size) -> Tensor:
        made: Tensor = torch.ops.mkldnn._reorder_convolution_weight(self._plain, *self._geometry, list(size[0]))
        content = _content(made)
        weight = next((one for one in self._layouts if _content(one) == content), made)
        if weight is made:
            self._layouts.append(made)
        if len(self._layout_of) >= KEPT_SIZES:
            self._layout_of.clear()
        self._layout_of[size] = weight
        return weight


def _content(weight: Tensor) -> bytes:
    """What a weight is in memory: the same in two layouts only where they are one and the same."""
    return ctypes.string_at(torch.ops.mkldnn.data_ptr(weight), torch.ops.mkldnn._nbytes(weight))
