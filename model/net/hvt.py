"""HVT, classifier (arXiv 2103.10619, section 3): a vision transformer that pools its sequence of patches.

Parameter names are those of the authors' checkpoints. Sequences are (N, L, C).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.errors import BundleInvalid
from model.families.hvt import HEAD_CHANNELS, HVTSpec
from model.net.layers import AttentionProduct, ChainedModule, Chains, ChannelMLP, ResidualModule, add_layer
from model.net.network import BackboneNetwork, StateDictShapes

EPS = 1e-6
"""Of all layer norms."""


class Attention(ResidualModule):
    """Multi-head attention on (N, L, C), with one linear layer for queries, keys and values, plus the residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD_CHANNELS
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.product = AttentionProduct()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = self.product(q, k, v)
        return add_layer(residual, self.proj, mixed.transpose(1, 2).flatten(2))


class PatchEmbedding(nn.Module):
    """A picture's patches as a sequence, row by row: (N, 3, H, W) → (N, L, C)."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return out


class Pooling(nn.Module):
    """Maxima of three patches at every second position, without padding: (N, L, C) → (N, (L - 3) // 2 + 1, C)."""

    def forward(self, x: Tensor) -> Tensor:
        length = (x.shape[1] - 3) // 2 + 1
        first, second, third = (x[:, at : at + 2 * length - 1 : 2] for at in range(3))
        return torch.maximum(torch.maximum(first, second), third)


class Block(ChainedModule):
    """Attention and a channel MLP, each on the normalised sequence and plus its input; then pooling, if `pooled`.

    `pooled` is the length of the pooled sequence, whose positions get embeddings of their own; 0: no pooling.
    """

    chains: ClassVar[Chains] = (("norm1", "attn.qkv"), ("norm2", "mlp"))

    def __init__(self, channels: int, hidden: int, pooled: int) -> None:
        super().__init__()
        if pooled:
            self.pos_embed = nn.Parameter(torch.zeros(1, pooled, channels))
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attn = Attention(channels)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = ChannelMLP(channels, hidden)
        self.downsample = Pooling() if pooled else nn.Identity()
        self.pooled = pooled > 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x), x)
        x = self.mlp(self.norm2(x), x)
        if self.pooled:
            x = self.downsample(x) + self.pos_embed
        return x


class HVTClassifier(nn.Module):
    """Normalised float (N, 3, S, S) RGB, S = `input_size` → logits (N, classes)."""

    def __init__(self, spec: HVTSpec, num_classes: int) -> None:
        super().__init__()
        first, *pooled = spec.lengths
        lengths = dict(zip(spec.pooled_blocks, pooled, strict=True))
        self.pos_embed = nn.Parameter(torch.zeros(1, first, spec.channels))
        self.patch_embed = PatchEmbedding(spec.channels, spec.patch)
        self.pos_drop = nn.Identity()
        self.blocks = nn.ModuleList(
            Block(spec.channels, spec.channels * spec.mlp_ratio, lengths.get(at, 0)) for at in range(spec.depth)
        )
        self.norm = nn.LayerNorm(spec.channels, eps=EPS)
        self.head = nn.Linear(spec.channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        x = self.pos_drop(self.patch_embed(x) + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        normalised: Tensor = self.norm(x)
        return normalised.mean(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


def _build(spec: HVTSpec) -> nn.Module:
    raise BundleInvalid(f"hvt of size {spec.size} has no feature levels: it can be a classifier only")


def _infer(shapes: StateDictShapes, prefix: str) -> HVTSpec:
    depth = shapes.count(f"{prefix}blocks.")
    channels = shapes.rows(f"{prefix}patch_embed.proj.weight")
    patch = shapes.axis(f"{prefix}patch_embed.proj.weight", 2)
    return HVTSpec(
        input_size=math.isqrt(shapes.axis(f"{prefix}pos_embed", 1)) * patch,
        patch=patch,
        channels=channels,
        depth=depth,
        pooled_blocks=tuple(at for at in range(depth) if f"{prefix}blocks.{at}.pos_embed" in shapes.tensors),
        mlp_ratio=shapes.rows(f"{prefix}blocks.0.mlp.fc1.weight") // max(channels, 1),
    )


NETWORK = BackboneNetwork(build=_build, build_classifier=HVTClassifier, key="blocks.0.attn.qkv.weight", infer=_infer)
