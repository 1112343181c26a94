"""Layers on the CPU that multiply bytes: uint8 inputs by int8 weights, summed in 32-bit integers, by oneDNN.

Inputs are unsigned, because without AMX oneDNN has no fast product of signed ones. Sums of integers are exact, so an
output does not depend on the batch, or on the number of threads. A layer takes floats, which it quantises itself, or
bytes that the layer before made for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from model.net.cpu import rows
from model.net.cpu.conv import EXACT_GELU, Activation, PackedWeights
from model.net.cpu.openmp import parallel_address, threads_for
from model.net.cpu.rows import COLUMNS, LayerNorm, is_row_norm, pack_columns
from model.net.layers import ChannelMLP, chains_of
from model.net.quantisation import InputRange, InputRanges, quantise_weight

if rows.AVAILABLE:
    from model.net.cpu import _kernels

MIN_IN_CHANNELS = 8
"""Of a convolution; fewer make no full vector of products."""

_FLOATS = InputRange(1.0, 0)
"""The operators' arguments for an output in float32."""


def int8_available() -> bool:
    """Whether this build of torch has the operators."""
    return hasattr(torch.ops.onednn, "qlinear_pointwise") and hasattr(torch.ops.onednn, "qconv2d_pointwise")


def int8_accelerates() -> bool:
    """Whether the operators are available and this processor has instructions for products of bytes.

    On others the products' sums are cut to 16 bits, so that answers would be wrong.
    """
    return int8_available() and (torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported())


def takes_int8(layer: nn.Module) -> bool:
    """Whether a layer has a form that multiplies bytes, and gains from it.

    Depthwise convolutions and those of few input channels, such as a picture's, are as fast in bfloat16.
    """
    match layer:
        case nn.Conv2d() if layer.in_channels < MIN_IN_CHANNELS:
            return False
        case nn.Conv2d():
            return layer.groups == 1 and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)
        case nn.Linear():
            return True
        case _:
            return False


class Int8Conv(nn.Module):
    """A convolution and an optional ReLU: (N, C, H, W) → (N, D, H', W'), channels-last in memory.

    The output is uint8 in `output_range`; None: floats of `dtype`.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        input_range: InputRange,
        output_range: InputRange | None = None,
        *,
        relu: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.relu = relu
        self._geometry = (list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups)
        _let_torch_warn()
        integers, self._scales = quantise_weight(conv.weight)
        scales, geometry, scale, zero_point = self._scales, self._geometry, input_range.scale, input_range.zero_point
        self._weights = PackedWeights(
            lambda shape: torch.ops.onednn.qconv_prepack(integers, scales, scale, zero_point, *geometry, shape)
        )
        self._zeros = torch.zeros(conv.out_channels, dtype=torch.int64)
        self._bias = None if conv.bias is None else conv.bias.detach().float()
        self._input_range, self._output = input_range, output_range or _FLOATS
        self._dtype = dtype if output_range is None else torch.uint8

    def forward(self, x: Tensor) -> Tensor:
        source, target = self._input_range, self._output
        x = _bytes(x, source)
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            *(x, source.scale, source.zero_point, self._weights.weight(x), self._scales, self._zeros, self._bias),
            *self._geometry,
            *(target.scale, target.zero_point, self._dtype, "relu" if self.relu else "none", [], ""),
        )
        return out


class Int8Linear(nn.Module):
    """A linear layer over the last axis and an optional activation: (N, ..., C) → (N, ..., D).

    The output is uint8 in `output_range`; None: floats of `dtype`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        input_range: InputRange,
        output_range: InputRange | None = None,
        activation: Activation = "none",
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`weight` is (D, C), `bias` (D,)."""
        super().__init__()
        _let_torch_warn()
        integers, self._scales = quantise_weight(weight)
        self._weight: Tensor = torch.ops.onednn.qlinear_prepack(integers, None)
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._bias = None if bias is None else bias.detach().float()
        self._input_range, self._output, self._activation = input_range, output_range or _FLOATS, activation
        self._dtype = dtype if output_range is None else torch.uint8

    def forward(self, x: Tensor) -> Tensor:
        source, target = self._input_range, self._output
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(_bytes(x, source), source.scale, source.zero_point),
            *(self._weight, self._scales, self._zeros, self._bias),
            *(target.scale, target.zero_point, self._dtype, self._activation, [], EXACT_GELU[self._activation]),
        )
        return out

    def plus(self, x: Tensor, addend: Tensor) -> Tensor:
        """The linear layer, without activation, plus a tensor of floats (N, ..., D), whose dtype the sum has."""
        source = self._input_range
        out: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            *(_bytes(x, source), source.scale, source.zero_point),
            *(self._weight, self._scales, self._zeros, addend, self._bias),
            *(1.0, 0, addend.dtype, 1.0, 0, "add", 1.0, "none", [], ""),
        )
        return out


class Int8PointwiseConv(nn.Module):
    """A 1x1 convolution and an exact GELU, which oneDNN fuses into linear layers only: (N, C, H, W) → (N, D, H, W)."""

    def __init__(
        self, conv: nn.Conv2d, input_range: InputRange, output_range: InputRange | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._linear = Int8Linear(conv.weight.flatten(1), conv.bias, input_range, output_range, "gelu", dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._linear(x.permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class Int8ChannelMLP(nn.Module):
    """Both linear layers, with bytes between them; the GELU is fused into the first, the sum into the second."""

    def __init__(self, mlp: ChannelMLP, first: InputRange, second: InputRange) -> None:
        super().__init__()
        self._first = Int8Linear(mlp.fc1.weight, mlp.fc1.bias, first, second, "gelu")
        self._second = Int8Linear(mlp.fc2.weight, mlp.fc2.bias, second)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self._second.plus(self._first(x), residual)


class VnniChannelMLP(nn.Module):
    """An `Int8ChannelMLP` of bfloat16 by kernels.c: both layers in one call, block by block of rows.

    Its GELU is within 5e-5 of the exact one. An output depends only on its row.
    """

    def __init__(self, mlp: ChannelMLP, first: InputRange, second: InputRange) -> None:
        super().__init__()
        self._first, self._second = _VnniLinear(mlp.fc1, first), _VnniLinear(mlp.fc2, second)
        self._range, self._between = first, second
        self._sizes = (mlp.fc1.in_features, mlp.fc1.out_features)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x, residual = _bytes(x, self._range).contiguous(), residual.contiguous()
        out = torch.empty_like(residual)
        count = out.numel() // out.shape[-1]
        _kernels.channel_mlp(
            *(x.data_ptr(), residual.data_ptr(), out.data_ptr(), count, *self._sizes),
            *(self._first.addresses, self._second.addresses, self._between.scale, self._between.zero_point),
            *(parallel_address(), threads_for(count)),
        )
        return out


class _VnniLinear:
    """A linear layer's tensors as kernels.c reads them."""

    def __init__(self, linear: nn.Linear, input_range: InputRange) -> None:
        integers, scales = quantise_weight(linear.weight)
        start = -input_range.zero_point * integers.sum(dim=1, dtype=torch.int32)
        bias = torch.zeros(len(integers)) if linear.bias is None else linear.bias.detach().float()
        self._tensors = (pack_columns(integers, inputs_at_once=4), start, scales * input_range.scale, bias.clone())
        self.addresses = tuple(tensor.data_ptr() for tensor in self._tensors)


def _channel_mlp(mlp: ChannelMLP, first: InputRange, second: InputRange, dtype: torch.dtype) -> nn.Module:
    sizes = (mlp.fc1.in_features, mlp.fc1.out_features)
    if rows.products_available() and dtype == torch.bfloat16 and not any(size % COLUMNS for size in sizes):
        return VnniChannelMLP(mlp, first, second)
    return Int8ChannelMLP(mlp, first, second)


def convert_to_int8(network: nn.Module, ranges: InputRanges, dtype: torch.dtype = torch.float32) -> None:
    """Replace the layers that `ranges` names, in place. Before: fold batch norms, use channels-last memory and float32.

    A name that the network does not have is skipped: its layer was merged into another one. `dtype` is that of what is
    between layers, float32 or bfloat16; convert the rest of the network to it afterwards.
    """
    modules = dict(network.named_modules())
    found = {modules[name]: value for name, value in ranges.items() if takes_int8(modules.get(name, network))}
    for parent in modules.values():
        for chain in chains_of(parent):
            _convert_chain(parent, chain, found, dtype)
    for parent in modules.values():
        for key, child in list(parent.named_children()):
            match child:
                case ChannelMLP() if child.fc1 in found and child.fc2 in found:
                    setattr(parent, key, _channel_mlp(child, found[child.fc1], found[child.fc2], dtype))
                case nn.Conv2d() if child in found:
                    setattr(parent, key, Int8Conv(child, found[child], dtype=dtype))
                case nn.Linear() if child in found and not isinstance(parent, ChannelMLP):
                    setattr(parent, key, Int8Linear(child.weight, child.bias, found[child], dtype=dtype))


def _convert_chain(
    parent: nn.Module, chain: Sequence[str], ranges: dict[nn.Module, InputRange], dtype: torch.dtype
) -> None:
    """Convolutions take over the activations that follow them, and hand bytes on to the next layer; so do norms."""
    steps = [(key, parent.get_submodule(key)) for key in chain]
    steps = [(key, module) for key, module in steps if not isinstance(module, nn.Identity)]
    for at, (key, module) in enumerate(steps):
        behind = steps[at + 1 :]
        if behind and is_row_norm(module, dtype):
            assert isinstance(module, nn.LayerNorm)
            emitted = _range_of(behind[0][1], ranges)
            if emitted is not None:
                parent.set_submodule(key, LayerNorm(module, emitted))
        # The last one of a chain may be the first of another, with an activation behind it.
        if not (isinstance(module, nn.Conv2d) and module in ranges and behind):
            continue
        activation = behind[0][1] if _fused_activation(module, behind[0][1]) else None
        if activation is not None:
            parent.set_submodule(behind[0][0], nn.Identity())
            behind = behind[1:]
        emitted = ranges.get(behind[0][1]) if behind else None
        if isinstance(activation, nn.GELU):
            made: nn.Module = Int8PointwiseConv(module, ranges[module], emitted, dtype)
        else:
            made = Int8Conv(module, ranges[module], emitted, relu=activation is not None, dtype=dtype)
        parent.set_submodule(key, made)


def _range_of(layer: nn.Module, ranges: dict[nn.Module, InputRange]) -> InputRange | None:
    """The range of a layer's input, or of a channel MLP's; None: it takes floats."""
    if not isinstance(layer, ChannelMLP):
        return ranges.get(layer)
    return ranges.get(layer.fc1) if layer.fc2 in ranges else None


def _fused_activation(conv: nn.Conv2d, following: nn.Module) -> bool:
    if isinstance(following, nn.GELU):
        pointwise = conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0)
        return pointwise and following.approximate == "none"
    return isinstance(following, nn.ReLU)


@cache
def _let_torch_warn() -> None:
    """torch announces once in each process that quantised dtypes will be removed. It has no other operator that rounds
    floats to bytes in one pass; its version is pinned."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)


def _bytes(x: Tensor, input_range: InputRange) -> Tensor:
    """Floats as uint8; bytes are returned as they are."""
    if x.dtype == torch.uint8:
        return x
    if x.dtype == torch.bfloat16 and rows.AVAILABLE:
        return rows.to_bytes(x, input_range)
    quantised = torch.quantize_per_tensor(x.float(), input_range.scale, input_range.zero_point, torch.quint8)
    # The quantised tensor's memory, without a copy.
    return torch.empty(0, dtype=torch.uint8).set_(quantised.untyped_storage(), 0, x.shape, quantised.stride())
