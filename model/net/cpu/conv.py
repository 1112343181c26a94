"""Convolutions on the CPU: oneDNN's operator, and Winograd's algorithm on top of it for 3x3 kernels.

Winograd's F(4, 3) (arXiv 1509.09308, section 4.1) halves the multiplications. Here it runs down the columns: a tile of
six inputs is transformed, each of the six values is multiplied with a weight of its own, and the products are
transformed back to four outputs, which otherwise take twelve products. Along the rows and over the channels it stays a
convolution, so nearly all time goes into six 1x3 convolutions. With many channels both transforms cost little.

In exact arithmetic the result is equal. Rounding errors are about three times those of the plain convolution, which is
small enough in float32 but not in half precision.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_CACHED_SIZES = 256
"""Input sizes whose packed weight a layer remembers; a detector's pictures have many sizes."""

Activation = Literal["none", "relu", "gelu"]
EXACT_GELU: dict[Activation, str] = {"none": "", "relu": "", "gelu": "none"}
"""By activation: oneDNN's algorithm."""

_Size = tuple[torch.Size, int]


class PackedWeights:
    """A weight in oneDNN's packing for each size of input. `pack` makes one for a shape.

    The fastest packing of the weight depends on the input's size and the number of threads. With any other packing,
    oneDNN repacks the weight at each call, which can take a hundred times as long as the convolution.
    """

    def __init__(self, pack: Callable[[list[int]], Tensor]) -> None:
        self._pack = pack
        self._distinct: list[Tensor] = []
        self._packed_for: dict[_Size, Tensor] = {}

    def weight(self, x: Tensor) -> Tensor:
        size = (x.shape, torch.get_num_threads())
        found = self._packed_for.get(size)
        return self._packed(size) if found is None else found

    def _packed(self, size: _Size) -> Tensor:
        made = self._pack(list(size[0]))
        content = _packed_bytes(made)
        weight = next((packed for packed in self._distinct if _packed_bytes(packed) == content), made)
        if weight is made:
            self._distinct.append(made)
        if len(self._packed_for) >= MAX_CACHED_SIZES:
            self._packed_for.clear()
        self._packed_for[size] = weight
        return weight


class Conv(nn.Module):
    """A convolution and an optional activation: (N, C, H, W) → (N, D, H', W'), channels-last in memory."""

    def __init__(self, conv: nn.Conv2d, activation: Activation = "none") -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple)
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        plain, geometry = conv.weight.detach(), self._geometry
        self._weights = PackedWeights(
            lambda shape: torch.ops.mkldnn._reorder_convolution_weight(plain, *geometry, shape)
        )
        self._bias = None if conv.bias is None else conv.bias.detach()
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weights.weight(x), self._bias, *self._geometry, self._activation, [], EXACT_GELU[self._activation]
        )
        return out

    def plus(self, x: Tensor, addend: Tensor) -> Tensor:
        """The convolution plus a tensor of its shape, then a ReLU if that is its activation."""
        activation = "relu" if self._activation == "relu" else None
        out: Tensor = torch.ops.mkldnn._convolution_pointwise.binary(
            x, addend, self._weights.weight(x), self._bias, *self._geometry, "add", 1.0, activation, [], ""
        )
        return out


def _packed_bytes(weight: Tensor) -> bytes:
    """A packed weight's memory: equal only if the packing is equal."""
    return ctypes.string_at(torch.ops.mkldnn.data_ptr(weight), torch.ops.mkldnn._nbytes(weight))


OUTPUTS, INPUTS = 4, 6
"""Rows of a tile; input tiles overlap by two."""
MIN_CHANNELS = 128
MIN_POSITIONS = 1024
"""With fewer of either, the transforms and two dozen calls instead of one cost more than they save. Positions are those
of one picture: a choice that depends on the batch would round a picture differently in another batch."""

_INPUT_TRANSFORM = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_WEIGHT_TRANSFORM = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""Transforms for the points 0, 1, -1, 2, -2 and infinity; `WinogradConv.forward` has the output's."""


def winograd_applies(conv: nn.Conv2d) -> bool:
    """Whether Winograd's algorithm is accurate enough for a convolution, and faster."""
    return (
        conv.weight.dtype == torch.float32
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )


class WinogradConv(nn.Module):
    """A convolution by Winograd's algorithm, and an optional ReLU: (N, C, H, W) → (N, D, H, W), channels-last.

    Small inputs use the plain convolution.
    """

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False) -> None:
        super().__init__()
        self._plain = Conv(conv, "relu" if relu else "none")
        self._relu = relu
        self._out_channels = conv.out_channels
        self._transforms = nn.ModuleList(_transform(row, conv.in_channels) for row in _INPUT_TRANSFORM)
        weights = torch.einsum("tr,oirc->toic", torch.tensor(_WEIGHT_TRANSFORM).double(), conv.weight.detach().double())
        self._products = nn.ModuleList(
            # Each output contains the second product once, so the bias is added there.
            _row_conv(weight, conv.bias if at == 1 else None, relu=relu and at in (0, INPUTS - 1))
            for at, weight in enumerate(weights)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        if height * width < MIN_POSITIONS:
            small: Tensor = self._plain(x)
            return small
        if height % OUTPUTS:
            x = F.pad(x, (0, 0, 0, -height % OUTPUTS))
        first, *inner, last = zip(self._products, self._transforms, strict=True)
        a, b, c, d = (product(transform(x)) for product, transform in inner)
        even, odd = a + b, a.sub_(b)
        wide_even, wide_odd = c + d, c.sub_(d)
        out = x.new_empty(batch, height, width, self._out_channels).permute(0, 3, 1, 2)
        rows = [out[:, :, at::OUTPUTS] for at in range(OUTPUTS)]
        counts = [row.shape[2] for row in rows]
        rows[0].copy_(_plus(first, x, even + wide_even)[:, :, : counts[0]])
        torch.add(odd[:, :, : counts[1]], wide_odd[:, :, : counts[1]], alpha=2, out=rows[1])
        torch.add(even[:, :, : counts[2]], wide_even[:, :, : counts[2]], alpha=4, out=rows[2])
        rows[3].copy_(_plus(last, x, odd.add_(wide_odd, alpha=8))[:, :, : counts[3]])
        if self._relu:
            rows[1].relu_()
            rows[2].relu_()
        return out


def _plus(pair: tuple[nn.Module, nn.Module], x: Tensor, addend: Tensor) -> Tensor:
    product, transform = pair
    assert isinstance(product, Conv)
    return product.plus(transform(x), addend)


def _transform(row: tuple[int, ...], channels: int) -> Conv:
    """One transformed value of each tile, channel by channel: (N, C, H, W) → (N, C, H/4, W)."""
    conv = nn.Conv2d(channels, channels, (INPUTS, 1), (OUTPUTS, 1), (1, 0), groups=channels, bias=False)
    weight = torch.tensor(row, dtype=torch.float32)[:, None].expand(channels, 1, INPUTS, 1)
    conv.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    return Conv(conv)


def _row_conv(weight: Tensor, bias: Tensor | None, *, relu: bool) -> Conv:
    """A 1x3 convolution along the rows, with weight (D, C, 3)."""
    out_channels, in_channels, taps = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, (1, taps), padding=(0, taps // 2), bias=False)
    weights = weight[:, :, None].float().contiguous(memory_format=torch.channels_last)
    conv.weight = nn.Parameter(weights, requires_grad=False)
    conv.bias = bias
    return Conv(conv, "relu" if relu else "none")
