"""Linear layers on the CPU: oneDNN's operator with packed weights, or MKL's matrix product where that is faster.

A call of oneDNN's operator takes about 20 µs before it multiplies, and twice as long when other layers have used the
caches. One of MKL takes 3 µs. So small products go to MKL, on Intel's processors: on others MKL is slow. MKL's results
do not depend on the size of a batch and the number of threads only in its mode of conditional numerical
reproducibility, so that it is used in that mode only.

In bfloat16, on processors without AMX, kernels.c takes 0.6 to 0.8 of oneDNN's time, the least for a single picture: a
classifier's last layer, for one picture, takes 18 µs instead of 67.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.net.cpu import rows
from model.net.cpu.conv import EXACT_GELU, Activation
from model.net.cpu.openmp import parallel_address, threads_for
from model.net.layers import ChannelMLP, SharedLinear

if rows.AVAILABLE:
    from model.net.cpu import _kernels

MKL_MAX_PRODUCTS = 40_000_000
"""Multiplications for one picture; with more of them oneDNN is as fast. Those of one picture, as a choice that depends
on the batch would round a picture differently in another batch."""

KERNEL_ACTIVATIONS: dict[Activation, int] = {"none": 0, "relu": 1, "gelu": 2}

MIN_ROWS = {torch.float32: 2, torch.bfloat16: 16, torch.float16: 16}
"""With fewer rows oneDNN sums otherwise, so that an answer would depend on the size of its batch: a classifier's last
layer has as many rows as the batch. In float32 this holds for one row of more than about 1,000 channels; in half
precision also for less than a tile of AMX."""


@cache
def is_intel() -> bool:
    """Whether the processor is known to be one of Intel's."""
    return platform.system() == "Linux" and "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


@cache
def mkl_is_reproducible() -> bool:
    """Whether MKL runs in its reproducible mode, on a processor that it is fast on."""
    if not (torch.backends.mkl.is_available() and os.environ.get("MKL_CBWR", "").endswith("STRICT")):
        return False
    return is_intel()


class Linear(nn.Module):
    """A linear layer over the last axis and an optional activation: (N, ..., C) → (N, ..., D)."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, activation: Activation = "none", *, large: bool = False
    ) -> None:
        """`weight` is (D, C), `bias` (D,). `large`: its products are never small."""
        super().__init__()
        weight = weight.detach().contiguous()
        self._bias = None if bias is None else bias.detach()
        self._activation = activation
        self._out_channels, self._products = len(weight), weight.numel()
        # oneDNN's fused GELU takes a fifth of the time of torch's.
        with_mkl = weight.dtype == torch.float32 and mkl_is_reproducible() and not large and activation != "gelu"
        # (C, D), as MKL multiplies it fastest; or None, and only packed for oneDNN.
        self._columns = weight.t().contiguous() if with_mkl else None
        self._kernel = _KernelLinear(weight, self._bias) if _kernel_takes(weight) else None
        self._packed: Tensor | None = None if with_mkl or self._kernel is not None else _packed(weight)

    def forward(self, x: Tensor) -> Tensor:
        if self._kernel is not None:
            return self._kernel(x, self._activation)
        padded, out_shape = _enough_rows(x), (*x.shape[:-1], self._out_channels)
        columns = self._columns
        if columns is not None and self._is_small(x):
            flat = padded.reshape(-1, padded.shape[-1])
            product = torch.mm(flat, columns) if self._bias is None else torch.addmm(self._bias, flat, columns)
            return _cut(product.relu_() if self._activation == "relu" else product, out_shape)
        out = torch.ops.mkldnn._linear_pointwise(
            padded, self._packed_weight(), self._bias, self._activation, [], EXACT_GELU[self._activation]
        )
        return _cut(out, out_shape)

    def plus(self, x: Tensor, addend: Tensor) -> Tensor:
        """The linear layer, without activation, plus a tensor (N, ..., D)."""
        assert self._activation == "none"
        if self._kernel is not None:
            return self._kernel(x, "none", addend)
        padded, addends = _enough_rows(x), _enough_rows(addend)
        columns = self._columns
        if columns is not None and self._is_small(x):
            addends = addends.reshape(-1, addend.shape[-1])
            out = addends.clone() if self._bias is None else addends + self._bias
            return _cut(out.addmm_(padded.reshape(-1, x.shape[-1]), columns), addend.shape)
        out = torch.ops.mkldnn._linear_pointwise.binary(padded, addends, self._packed_weight(), self._bias, "add")
        return _cut(out, addend.shape)

    def _is_small(self, x: Tensor) -> bool:
        return x.shape[1:-1].numel() * self._products <= MKL_MAX_PRODUCTS

    def _packed_weight(self) -> Tensor:
        if self._packed is None:
            assert self._columns is not None
            self._packed = _packed(self._columns.t().contiguous())
        return self._packed


class _KernelLinear:
    """A linear layer of bfloat16 by kernels.c. Its GELU is within 5e-5 of the exact one.

    Outputs up to a multiple of `rows.COLUMNS` are computed and left out.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._outputs = len(weight)
        missing = -self._outputs % rows.COLUMNS
        self._weight = rows.pack_columns(F.pad(weight, (0, 0, 0, missing)), inputs_at_once=2)
        self._bias = torch.zeros(self._outputs + missing)
        if bias is not None:
            self._bias[: self._outputs] = bias

    def __call__(self, x: Tensor, activation: Activation, addend: Tensor | None = None) -> Tensor:
        x, computed = x.contiguous(), len(self._bias)
        if addend is not None:
            addend = F.pad(addend, (0, computed - self._outputs)).contiguous()
        out = x.new_empty(*x.shape[:-1], computed)
        count = x.shape[:-1].numel()
        _kernels.linear(
            *(x.data_ptr(), 0 if addend is None else addend.data_ptr(), out.data_ptr()),
            *(count, x.shape[-1], computed, self._weight.data_ptr(), self._bias.data_ptr()),
            *(KERNEL_ACTIVATIONS[activation], parallel_address(), threads_for(count)),
        )
        return out if computed == self._outputs else out[..., : self._outputs].contiguous()


def _kernel_takes(weight: Tensor) -> bool:
    outputs, inputs = weight.shape
    missing = -outputs % rows.COLUMNS
    # To compute many outputs and leave them out takes longer than oneDNN; of narrow layers more, as calls are short.
    worth = 4 * missing <= outputs or rows.COLUMNS // 2 < outputs < rows.COLUMNS
    return weight.dtype == torch.bfloat16 and rows.products_available() and worth and inputs % 2 == 0


class SingleSharedLinear(nn.Module):
    """A `SharedLinear` of one set: (P, 1, L) → (P, 1, L)."""

    def __init__(self, shared: SharedLinear) -> None:
        super().__init__()
        self._linear = Linear(shared.weight.flatten(1), shared.bias, large=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self._linear(x)
        return out


class FusedChannelMLP(nn.Module):
    """Both linear layers; the exact GELU is fused into the first and the sum into the second."""

    def __init__(self, mlp: ChannelMLP) -> None:
        super().__init__()
        self._first = Linear(mlp.fc1.weight, mlp.fc1.bias, "gelu")
        self._second = Linear(mlp.fc2.weight, mlp.fc2.bias)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self._second.plus(self._first(x), residual)


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def _enough_rows(x: Tensor) -> Tensor:
    """`x` (..., C), or where it has too few rows, these and zeros as (MIN_ROWS, C)."""
    count, least = x.shape[:-1].numel(), MIN_ROWS[x.dtype]
    return x if count >= least else F.pad(x.reshape(count, x.shape[-1]), (0, 0, 0, least - count))


def _cut(out: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows as (..., D), without those that were added."""
    channels = shape[-1]
    count = torch.Size(shape[:-1]).numel()
    flat = out.reshape(-1, channels)
    return (flat if len(flat) == count else flat[:count]).view(shape)
