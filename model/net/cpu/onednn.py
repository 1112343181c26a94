"""Networks on the CPU: convolutions and linear layers by oneDNN's operators, with packed weights and fused operations.

These are the operators that torch.compile would choose, called directly: there is nothing to compile, and linear
layers use MKL only where it is fast. On two AVX-512 cores a ConvMLP-S in float32
runs 1.45 times as many images a second as with channels-last memory alone.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

from model.net import layers
from model.net.cpu import rows
from model.net.cpu.conv import Activation, Conv, WinogradConv, winograd_applies
from model.net.cpu.int8 import Int8Conv
from model.net.cpu.linear import FusedChannelMLP, Linear, SingleSharedLinear, is_intel
from model.net.cpu.rows import AttentionProduct, LayerNorm, ScaleAndShift, is_row_norm
from model.net.fold import scale_and_shift
from model.net.layers import ChannelMLP, SharedLinear, UnfoldedBatchNorm2d, chains_of

_OPERATORS = ("_convolution_pointwise", "_reorder_convolution_weight", "_linear_pointwise", "_reorder_linear_weight")


def onednn_available() -> bool:
    """Whether this build of torch has the operators."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()
        and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
    )


def onednn_accelerates(dtype: torch.dtype) -> bool:
    """Whether the operators are available and this processor has native instructions for a dtype."""
    if not onednn_available():
        return False
    match dtype:
        case torch.float32:
            return True
        case torch.bfloat16:
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        case torch.float16:
            return torch.cpu._is_amx_fp16_supported()
        case _:
            return False


def bf16_products_gain() -> bool:
    """Whether bfloat16 is known to be faster than float32 for any network, so that it need not be measured for each.

    On AMD's processors with such instructions products take half of float32's time. On Intel's without AMX they take
    twice as long; with AMX that was not measured.
    """
    return onednn_accelerates(torch.bfloat16) and not is_intel()


def convert_to_onednn(network: nn.Module) -> None:
    """Replace layers in place. Before: fold batch norms, use channels-last memory, convert to the final dtype.

    Afterwards the network cannot change its state dict, device or dtype.
    """
    for parent in list(network.modules()):
        for chain in chains_of(parent):
            _fuse_in_order(parent, chain)
    for parent in list(network.modules()):
        if not isinstance(parent, ChannelMLP):  # replaced as a whole
            for key, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d):
                    setattr(parent, key, _conv(child, "none"))
                elif isinstance(child, UnfoldedBatchNorm2d):
                    scale, shift = scale_and_shift(child)
                    setattr(parent, key, ScaleAndShift(scale.float(), shift.float(), child.weight.dtype))
                elif isinstance(child, nn.LayerNorm) and is_row_norm(child, child.weight.dtype):
                    setattr(parent, key, LayerNorm(child))
                elif isinstance(child, layers.AttentionProduct) and rows.AVAILABLE:
                    setattr(parent, key, AttentionProduct(child))
                elif isinstance(child, nn.Linear):
                    setattr(parent, key, Linear(child.weight, child.bias))
                elif isinstance(child, ChannelMLP):
                    setattr(parent, key, FusedChannelMLP(child))
                elif isinstance(child, SharedLinear) and child.sets == 1:
                    setattr(parent, key, SingleSharedLinear(child))


def _fuse_in_order(parent: nn.Module, chain: tuple[str, ...]) -> None:
    """Modules are computed in order, so an activation can be fused into the convolution before it."""
    before: tuple[str, nn.Conv2d] | None = None
    rectified = False
    for key in chain:
        child = parent.get_submodule(key)
        match child:
            case nn.Conv2d():
                before, rectified = (key, child), False
            case nn.ReLU() | nn.GELU(approximate="none") if before is not None:
                rectified = isinstance(child, nn.ReLU)
                name, conv = before
                parent.set_submodule(name, _conv(conv, "relu" if rectified else "gelu"))
                parent.set_submodule(key, nn.Identity())
                before = None
            case Int8Conv(relu=True):
                before, rectified = None, True
            case nn.MaxPool2d(kernel_size=3, stride=2, padding=1) if rectified:
                parent.set_submodule(key, _MaxPool())
            case nn.Identity():
                pass
            case _:
                before, rectified = None, False


def _conv(conv: nn.Conv2d, activation: Activation) -> nn.Module:
    if activation != "gelu" and winograd_applies(conv):
        return WinogradConv(conv, relu=activation == "relu")
    return Conv(conv, activation)


class _MaxPool(nn.Module):
    """3x3 max-pooling of stride 2 and padding 1 of non-negative values, one axis after the other.

    It takes four maxima of vectors of channels instead of eight, and computes no indices. Values are not negative, so
    padding never wins and is left out, and floats compare as their bits do as integers: half precision has no other
    fast maximum.
    """

    def forward(self, x: Tensor) -> Tensor:
        bits = x.view(torch.int16 if x.element_size() == 2 else torch.int32)
        return _halve(_halve(bits, 2), 3).view(x.dtype)


def _halve(x: Tensor, axis: int) -> Tensor:
    """Maxima of windows of three around every second position of an axis."""
    even, odd = (_every_second(x, axis, first) for first in (0, 1))
    pairs = odd.shape[axis]
    # If the axis is odd, the last window has no right neighbour.
    out = even.clone() if even.shape[axis] > pairs else torch.maximum(even, odd)
    if even.shape[axis] > pairs:
        _maximum_into(out, axis, 0, odd)
    _maximum_into(out, axis, 1, odd.narrow(axis, 0, out.shape[axis] - 1))
    return out


def _every_second(x: Tensor, axis: int, first: int) -> Tensor:
    return x[:, :, first::2] if axis == 2 else x[..., first::2]


def _maximum_into(x: Tensor, axis: int, start: int, floor: Tensor) -> None:
    """x = max(x, floor), in place, for as many positions from `start` as `floor` has."""
    part = x.narrow(axis, start, floor.shape[axis])
    torch.maximum(part, floor, out=part)
