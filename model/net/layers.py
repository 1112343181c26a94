"""Layers shared by networks. `model/net/cpu/onednn.py` replaces each of them as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Chains = tuple[tuple[str, ...], ...]


class ChainedModule(nn.Module):
    """A module that lists which of its submodules directly follow each other, for folding and fusing them.

    `chains` has their names, such as `conv` or `conv2.0`: each takes the output of the one before, and nothing else
    takes that output.
    """

    chains: ClassVar[Chains] = ()

    def after_folding(self) -> None:
        """Change weights, in place, to an equivalent form that computes faster; called once, without gradients."""


class UnfoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that no neighbour can take over: before it is an activation, after it no layer, or one that pads."""


class ResidualModule(nn.Module):
    """A module that adds the residual itself, in its last layer: it takes x and the residual, first of its inputs."""


def add_layer(residual: Tensor, layer: nn.Module, x: Tensor) -> Tensor:
    """residual + layer(x), in one operation where the layer has one: those on the CPU do."""
    plus = getattr(layer, "plus", None)
    out: Tensor = residual + layer(x) if plus is None else plus(x, residual)
    return out


class ConvModule(nn.Module):
    """A convolution of stride 1 or 2, padded by half the kernel; batch norm and ReLU are optional.

    Parameter names are mmcv's: `conv` and `bn`. With batch norm the convolution has no bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        norm: bool = False,
        relu: bool = False,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=not norm)
        self.bn = nn.BatchNorm2d(out_channels) if norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out

    def plus(self, x: Tensor, addend: Tensor) -> Tensor:
        """The module's output plus a tensor of its shape."""
        if isinstance(self.bn, nn.Identity) and isinstance(self.relu, nn.Identity):
            return add_layer(addend, self.conv, x)
        out: Tensor = addend + self(x)
        return out


class SharedLinear(nn.Module):
    """A linear layer over positions, with one matrix for each set of channels: (P, sets, L) → (P, sets, L).

    The weight has the shape of a grouped 1x1 convolution, (sets · L, L, 1, 1).
    """

    def __init__(self, sets: int, positions: int, *, bias: bool) -> None:
        super().__init__()
        self.sets = sets
        bound = positions**-0.5
        self.weight = nn.Parameter(torch.empty(sets * positions, positions, 1, 1).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(sets * positions)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(self.sets, -1, x.shape[2])
        out = torch.bmm(x.transpose(0, 1), weight.transpose(1, 2))
        if self.bias is not None:
            out = out + self.bias.view(self.sets, 1, -1)
        return out.transpose(0, 1)


class ChannelMLP(ResidualModule):
    """Two linear layers over the last axis, exact GELU between them, plus the residual."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = residual + self.fc2(self.act(self.fc1(x)))
        return out


class AttentionProduct(nn.Module):
    """Scaled dot-product attention: queries (N, heads, L, C), keys and values (N, heads, L', C) → (N, heads, L, C).

    `bias` (heads, L, L') is added to the scaled products of queries and keys.
    """

    def __init__(self) -> None:
        super().__init__()
        self.few_keys = False
        """Compute by matrix products, which take half the time of torch's operator with some tens of keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.few_keys and bias is not None:
            return _attention_on_few_keys(q, k, v, bias)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias[None])


def _attention_on_few_keys(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    queries, keys, values = (part.flatten(0, 1) for part in (q, k, v))
    biases = bias.expand(len(q), *bias.shape).flatten(0, 1)
    products = torch.baddbmm(biases, queries, keys.transpose(1, 2), alpha=q.shape[3] ** -0.5)
    out: Tensor = torch.bmm(products.softmax(dim=2), values).unflatten(0, q.shape[:2])
    return out


def chains_of(module: nn.Module) -> Iterator[tuple[str, ...]]:
    """The names of submodules that are computed one directly after the other."""
    if isinstance(module, nn.Sequential | ConvModule):
        yield tuple(name for name, _ in module.named_children())
    elif isinstance(module, ChainedModule):
        yield from module.chains
