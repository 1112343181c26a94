"""Layers between matrix products, each in one pass by kernels.c where it is compiled and the processor has AVX-512 with
bfloat16: layer norms, softmax, scales and shifts by channel, and rounding to bytes; and what its linear layers need.

In bfloat16 torch takes 3 to 7 times as long for norms and softmax, the longest where rows are narrow. One thread
computes a call, so that many cores give a lone request less here than they do in its matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.net import layers
from model.net.quantisation import InputRange

try:
    from model.net.cpu import _kernels
except ImportError:  # there was no C compiler
    AVAILABLE = False
else:
    AVAILABLE = _kernels.available()

LONGEST = 4096
"""Numbers in a row that is normalised."""
_FLOATS = InputRange(0.0, 0)


def takes_rows(dtype: torch.dtype, length: int) -> bool:
    """Whether the kernels are used for rows of this length and dtype. In float32 they gained nothing for networks."""
    return AVAILABLE and dtype == torch.bfloat16 and 0 < length <= LONGEST


COLUMNS = 64
"""Outputs of a linear layer that the kernels compute at a time; they take layers of multiples of that."""


def products_available() -> bool:
    """Whether the kernels' linear layers are available, and faster than oneDNN's, which use AMX where they can."""
    return AVAILABLE and torch.cpu._is_vnni_supported() and not torch.cpu._is_amx_tile_supported()


def pack_columns(weight: Tensor, inputs_at_once: int) -> Tensor:
    """A linear layer's weight (D, C) as the kernels read it: (D / 64, C / n, 64, n), `inputs_at_once` being n."""
    outputs, inputs = weight.shape
    parts = weight.view(outputs // COLUMNS, COLUMNS, inputs // inputs_at_once, inputs_at_once)
    return parts.transpose(1, 2).contiguous()


def softmax_(x: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """softmax(x * scale + bias) over the last axis, in place: contiguous (N · B, ..., L), bias (B, ..., L).

    Both are bfloat16, as `takes_rows` asks for.
    """
    length = x.shape[-1]
    bias = None if bias is None else bias.contiguous()
    biases = (0, 0) if bias is None else (bias.data_ptr(), bias.numel() // length)
    _kernels.softmax(x.data_ptr(), x.numel() // length, length, scale, *biases)
    return x


def to_bytes(x: Tensor, input_range: InputRange) -> Tensor:
    """bfloat16 as uint8 in the same layout of memory. Only where the kernels are available."""
    x = x if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()
    out = torch.empty_like(x, dtype=torch.uint8)
    _kernels.quantise(x.data_ptr(), out.data_ptr(), x.numel(), input_range.scale, input_range.zero_point)
    return out


class LayerNorm(nn.Module):
    """A layer norm over the last axis, computed in float32: bfloat16 (N, ..., C) → (N, ..., C), contiguous.

    The output is bfloat16, or uint8 in `output_range`.
    """

    def __init__(self, norm: nn.LayerNorm, output_range: InputRange | None = None) -> None:
        super().__init__()
        assert norm.weight is not None
        self._weight = norm.weight.detach().float().contiguous()
        self._bias = torch.zeros_like(self._weight) if norm.bias is None else norm.bias.detach().float().contiguous()
        self._eps = norm.eps
        self._bytes = output_range is not None
        self._range = output_range or _FLOATS

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x, dtype=torch.uint8 if self._bytes else x.dtype)
        channels = x.shape[-1]
        _kernels.layer_norm(
            *(x.data_ptr(), out.data_ptr(), x.numel() // channels, channels),
            *(self._weight.data_ptr(), self._bias.data_ptr()),
            self._eps,
            self._range.scale,
            self._range.zero_point,
        )
        return out


def is_row_norm(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether `LayerNorm` computes a module, for inputs of a dtype."""
    return (
        isinstance(module, nn.LayerNorm)
        and len(module.normalized_shape) == 1
        and module.elementwise_affine
        and takes_rows(dtype, module.normalized_shape[0])
    )


class ScaleAndShift(nn.Module):
    """x * scale + shift by channel: (N, C, H, W) → (N, C, H, W), channels-last in memory."""

    def __init__(self, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> None:
        """`scale` and `shift` are float32 (C,); `dtype` is that of inputs."""
        super().__init__()
        self._with_kernel = AVAILABLE and dtype == torch.bfloat16
        kept = torch.float32 if self._with_kernel else dtype
        self._scale, self._shift = (values.to(kept).contiguous() for values in (scale, shift))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        if not self._with_kernel:
            return torch.addcmul(self._shift, x, self._scale).permute(0, 3, 1, 2)
        x = x.contiguous()
        out, channels = torch.empty_like(x), x.shape[-1]
        _kernels.scale_and_shift(
            *(x.data_ptr(), out.data_ptr(), x.numel() // channels, channels),
            *(self._scale.data_ptr(), self._shift.data_ptr()),
        )
        return out.permute(0, 3, 1, 2)


class AttentionProduct(layers.AttentionProduct):
    """By matrix products in bfloat16, with the softmax in one pass over their results."""

    def __init__(self, product: layers.AttentionProduct) -> None:
        super().__init__()
        self.few_keys = product.few_keys

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if not takes_rows(q.dtype, k.shape[2]):
            return super().forward(q, k, v, bias)
        queries, keys, values = (part.flatten(0, 1) for part in (q, k, v))
        shares = softmax_(torch.bmm(queries, keys.transpose(1, 2)), q.shape[3] ** -0.5, bias)
        out: Tensor = torch.bmm(shares, values).unflatten(0, q.shape[:2])
        return out
