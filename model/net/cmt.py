"""CMT, backbone and classifier (arXiv 2107.06263, section 3): convolutions and attention in each block.

Parameter names are those of the authors' checkpoints. Maps are (N, C, H, W). Attention takes the map's positions, row
by row, as (N, H·W, C): with channels-last memory both are views of the same numbers.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.families.cmt import CMTSpec
from model.net.layers import AttentionProduct, ChainedModule, Chains, ResidualModule, UnfoldedBatchNorm2d, add_layer
from model.net.network import BackboneNetwork, StateDictShapes, as_four

STAGES = "abcd"
BLOCK_EPS = 1e-6
"""Of the layer norms in blocks; those of patch embeddings have torch's default."""


VECTOR = 16
"""Float32 values in the widest vector of a CPU."""


def as_positions(x: Tensor) -> Tensor:
    """(N, C, H, W) → (N, H·W, C)."""
    return x.flatten(2).transpose(1, 2)


def as_map(x: Tensor, height: int) -> Tensor:
    """(N, H·W, C) → (N, C, H, W)."""
    out: Tensor = x.transpose(1, 2).unflatten(2, (height, -1))
    return out


class Attention(ChainedModule, ResidualModule):
    """Multi-head attention on (N, H·W, C), plus the residual. A strided depthwise convolution makes the map smaller for
    keys and values.

    `bias` (heads, H·W, H·W / reduction²) is added to the scaled products of queries and keys.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.product = AttentionProduct()
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.proj = nn.Linear(channels, channels)
        self.sr = (
            nn.Sequential(
                nn.Conv2d(channels, channels, reduction, reduction, groups=channels), nn.BatchNorm2d(channels)
            )
            if reduction > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor, residual: Tensor, height: int, bias: Tensor) -> Tensor:
        reduced = x if isinstance(self.sr, nn.Identity) else as_positions(self.sr(as_map(x, height)))
        q, k, v = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q(x), self.k(reduced), self.v(reduced))
        )
        out = self.product(q, k, v, bias if self.training else bias.detach())
        return add_layer(residual, self.proj, out.transpose(1, 2).flatten(2))

    def after_folding(self) -> None:
        self.product.few_keys = True


class FeedForward(ChainedModule, ResidualModule):
    """1x1, depthwise 3x3 plus its input, 1x1 convolutions, plus the residual: (N, C, H, W) → (N, C, H, W).

    Norms follow activations.
    """

    # `proj_act` directly follows `proj` once this has taken over the sum.
    chains: ClassVar[Chains] = (("proj", "proj_act", "proj_bn", "conv2.0"),)

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.sums = True
        # The depthwise convolution pads with zeros after this norm, so the norm cannot be folded into it.
        self.conv1 = nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.GELU(), UnfoldedBatchNorm2d(hidden))
        self.proj = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.proj_act = nn.GELU()
        self.proj_bn = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden, channels, 1), nn.BatchNorm2d(channels))

    def after_folding(self) -> None:
        """Let `proj` add its input, and add hidden channels of zeros up to a multiple of a vector.

        The last channels would otherwise be computed one number at a time.
        """
        _add_input(self.proj)
        self.sums = False
        first, norm, depthwise, last = self.conv1[0], self.conv1[2], self.proj, self.conv2[0]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(last, nn.Conv2d)
        missing = -first.out_channels % VECTOR
        if not missing:
            return
        for module in (first, norm, depthwise):
            # A norm of zeros, with weight and shift zero, is zero.
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.ndim:
                    _set(module, name, F.pad(tensor, (0, 0) * (tensor.ndim - 1) + (0, missing)))
        _set(last, "weight", F.pad(last.weight, (0, 0, 0, 0, 0, missing)))
        hidden = first.out_channels + missing
        first.out_channels = norm.num_features = last.in_channels = hidden
        depthwise.in_channels = depthwise.out_channels = depthwise.groups = hidden

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        x = self.conv1(x)
        local = x + self.proj(x) if self.sums else self.proj(x)
        # Once folded, the last norm is an identity.
        last = self.conv2 if self.sums else self.conv2[0]
        return add_layer(residual, last, self.proj_bn(self.proj_act(local)))


def _add_input(conv: nn.Conv2d) -> None:
    """Let a depthwise 3x3 convolution compute the sum of its output and its input."""
    conv.weight[:, 0, 1, 1] += 1


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or a buffer by one of another shape."""
    if name in dict(module.named_buffers()):
        module.register_buffer(name, value)
    else:
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


class Block(ChainedModule):
    """Depthwise 3x3 convolution, attention, feed-forward part, each plus its input, on (N, C, H, W)."""

    def __init__(self, channels: int, heads: int, hidden: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.mlp = FeedForward(channels, hidden)
        self.proj = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.sums = True

    def after_folding(self) -> None:
        _add_input(self.proj)
        self.sums = False

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        height = x.shape[2]
        x = x + self.proj(x) if self.sums else self.proj(x)
        positions = as_positions(x)
        positions = self.attn(self.norm1(positions), positions, height, bias)
        out: Tensor = self.mlp(as_map(self.norm2(positions), height), as_map(positions, height))
        return out


class PatchEmbedding(nn.Module):
    """A 2x2 convolution of stride 2 and a layer norm: (N, C, H, W) → (N, D, H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 2, 2)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return out.permute(0, 3, 1, 2)


class CMT(ChainedModule):
    """The backbone: normalised float (N, 3, S, S) RGB, S = `input_size` → levels (N, C, S/s, S/s), s = 4, 8, 16, 32."""

    # The third norm precedes a convolution without padding, the others do not.
    chains: ClassVar[Chains] = (
        ("stem_conv1", "stem_relu1"),
        ("stem_conv2", "stem_relu2"),
        ("stem_conv3", "stem_relu3"),
        ("stem_norm3", "patch_embed_a.proj"),
    )

    def __init__(self, spec: CMTSpec) -> None:
        super().__init__()
        self.spec = spec
        stem = spec.stem_channels
        self.stem_conv1 = nn.Conv2d(3, stem, 3, 2, 1)
        self.stem_relu1 = nn.GELU()  # so named by the authors
        self.stem_norm1 = UnfoldedBatchNorm2d(stem)
        self.stem_conv2 = nn.Conv2d(stem, stem, 3, 1, 1)
        self.stem_relu2 = nn.GELU()
        self.stem_norm2 = UnfoldedBatchNorm2d(stem)
        self.stem_conv3 = nn.Conv2d(stem, stem, 3, 1, 1)
        self.stem_relu3 = nn.GELU()
        self.stem_norm3 = nn.BatchNorm2d(stem)
        side, channels = spec.input_size // 2, stem
        for at, stage in enumerate(STAGES):
            side //= 2
            reduced = side // spec.reductions[at]
            table = torch.zeros(spec.stage_heads[at], side * side, reduced * reduced)
            self.register_parameter(f"relative_pos_{stage}", nn.Parameter(table))
            self.add_module(f"patch_embed_{stage}", PatchEmbedding(channels, spec.stage_channels[at]))
            channels = spec.stage_channels[at]
        per_block = zip(spec.stage_channels, spec.stage_heads, spec.hidden_channels, spec.reductions, strict=True)
        for stage, numbers, depth in zip(STAGES, per_block, spec.stage_depths, strict=True):
            self.add_module(f"blocks_{stage}", nn.ModuleList(Block(*numbers) for _ in range(depth)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.stem_norm1(self.stem_relu1(self.stem_conv1(x)))
        x = self.stem_norm2(self.stem_relu2(self.stem_conv2(x)))
        x = self.stem_norm3(self.stem_relu3(self.stem_conv3(x)))
        levels: list[Tensor] = []
        for stage in STAGES:
            x = self.get_submodule(f"patch_embed_{stage}")(x)
            bias = self.get_parameter(f"relative_pos_{stage}")
            for block in self.get_submodule(f"blocks_{stage}").children():
                x = block(x, bias)
            levels.append(x)
        return levels[0], levels[1], levels[2], levels[3]


class CMTClassifier(CMT):
    """Backbone, 1x1 projection, batch norm, swish, mean over positions, linear: the projection precedes the mean.

    A subclass, because the authors' checkpoints have the backbone's parameters without a prefix.
    """

    chains: ClassVar[Chains] = (*CMT.chains, ("_fc", "_bn", "_swish"))

    def __init__(self, spec: CMTSpec, num_classes: int) -> None:
        super().__init__(spec)
        self._fc = nn.Conv2d(spec.stage_channels[-1], spec.projection_channels, 1)
        self._bn = nn.BatchNorm2d(spec.projection_channels)
        self._swish = nn.SiLU()
        self.head = nn.Linear(spec.projection_channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        projected: Tensor = self._swish(self._bn(self._fc(super().forward(x)[-1])))
        return projected.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.head(self.features(x))
        return out


def _infer(shapes: StateDictShapes, prefix: str) -> CMTSpec:
    channels, depths, hidden, heads, sides, reductions = [], [], [], [], [], []
    for stage in STAGES:
        blocks = f"{prefix}blocks_{stage}."
        table = f"{prefix}relative_pos_{stage}"
        queries, keys = shapes.axis(table, 1), shapes.axis(table, 2)
        channels.append(shapes.rows(f"{prefix}patch_embed_{stage}.proj.weight"))
        depths.append(shapes.count(blocks))
        hidden.append(shapes.rows(f"{blocks}0.mlp.conv1.0.weight"))
        heads.append(shapes.rows(table))
        sides.append(math.isqrt(queries))
        reductions.append(math.isqrt(queries // keys))
    return CMTSpec(
        input_size=4 * sides[0],
        stem_channels=shapes.rows(f"{prefix}stem_conv1.weight"),
        stage_channels=as_four(channels),
        stage_depths=as_four(depths),
        hidden_channels=as_four(hidden),
        stage_heads=as_four(heads),
        reductions=as_four(reductions),
        # A backbone without its classifier has no projection.
        projection_channels=shapes.rows(f"{prefix}_fc.weight") if f"{prefix}_fc.weight" in shapes.tensors else 1280,
    )


NETWORK = BackboneNetwork(build=CMT, build_classifier=CMTClassifier, key="patch_embed_a.proj.weight", infer=_infer)
