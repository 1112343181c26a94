"""RepMLPNet, backbone and classifier (arXiv 2112.11081): fully connected layers over the positions of partitions.

Parameter names are those of the authors' checkpoints. Maps are (N, C, H, W). In the form that is trained, convolutions
inside each partition run beside its fully connected layer; `reparameterise` merges them into it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.families.repmlpnet import RepMLPNetSpec
from model.net.fold import scale_and_shift
from model.net.layers import (
    ChainedModule,
    Chains,
    ConvModule,
    ResidualModule,
    SharedLinear,
    UnfoldedBatchNorm2d,
    add_layer,
)
from model.net.network import BackboneNetwork, StateDictShapes, as_four


class PatchEmbedding(ChainedModule):
    """A convolution whose stride is its kernel, batch norm, ReLU: (N, C, H, W) → (N, D, H/k, W/k), rounded down."""

    chains: ClassVar[Chains] = (("conv", "bn", "relu"),)

    def __init__(self, channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, kernel, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.bn(self.conv(x)))
        return out


class Excitation(ChainedModule):
    """A factor of 0 to 1 for each channel, from its mean over the whole map: (N, C, H, W) → (N, C, 1, 1)."""

    chains: ClassVar[Chains] = (("fc1", "relu"),)

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(self.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))))


class PartitionMixer(ChainedModule, ResidualModule):
    """Mixes the positions of each partition of a map (N, C, H, W), both sides of which `partition` must divide, and
    adds the residual.

    Channel c uses set c modulo `sets` of the weights of `fc3`.
    """

    def __init__(self, channels: int, partition: int, sets: int, reduction: int, kernels: Iterable[int]) -> None:
        super().__init__()
        self.partition, self.sets = partition, sets
        self.fused = False
        positions = partition * partition
        self.gp = Excitation(channels, channels // reduction)
        self.kernels = tuple(kernels)  # empty: the convolutions are merged into `fc3`
        self.fc3 = SharedLinear(sets, positions, bias=not self.kernels)
        if self.kernels:
            self.fc3_bn = UnfoldedBatchNorm2d(sets)
        for kernel in self.kernels:
            conv = ConvModule(sets, sets, kernel, norm=True, groups=sets)
            self.add_module(f"repconv{kernel}", conv)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        height, width = x.shape[2:]
        side = self.partition
        if height % side or width % side:
            # Parts of different pictures would be mixed without an error.
            raise ValueError(f"a map of {height} x {width} positions has no partitions of {side} x {side}")
        rows, columns = height // side, width // side
        groups = x.shape[1] // self.sets
        # Channels of each partition, set by set: (N, rows, columns, groups, sets, side, side).
        parts = x.reshape(-1, groups, self.sets, rows, side, columns, side).permute(0, 3, 5, 1, 2, 4, 6)
        # One picture alone may be a view: a matrix product of another layout is rounded otherwise.
        mixed = self._mixed(parts.reshape(-1, self.sets, side, side).contiguous())
        # The authors' code reads the result in another order than it was written in, with groups before rows and
        # columns, and networks learnt with it: with a single partition both are equal.
        mixed = mixed.reshape(-1, groups, rows, columns, self.sets, side, side).permute(0, 1, 4, 2, 5, 3, 6)
        factors: Tensor = self.gp(x)
        mixed = mixed.reshape(x.shape)
        return torch.addcmul(residual, mixed, factors) if self.fused else residual + mixed * factors

    def after_folding(self) -> None:
        """Multiply and add in one pass."""
        self.fused = True

    def _mixed(self, parts: Tensor) -> Tensor:
        """(P, sets, side, side) → the same shape."""
        out: Tensor = self.fc3(parts.flatten(2)).reshape(parts.shape)
        if not self.kernels:
            return out
        merged: Tensor = self.fc3_bn(out)
        for kernel in self.kernels:
            branch: Tensor = self.get_submodule(f"repconv{kernel}")(parts)
            merged = merged + branch
        return merged

    @torch.no_grad()
    def reparameterise(self) -> None:
        """Merge norms and convolutions into `fc3`, in float64 (section 3.3 of the paper). Once merged: no effect."""
        if not self.kernels:
            return
        side, sets = self.partition, self.sets
        positions = side * side
        scale, shift = scale_and_shift(self.fc3_bn)
        weight = self.fc3.weight.double().view(sets, positions, positions) * scale[:, None, None]
        bias = shift[:, None].expand(sets, positions).clone()
        # By set, and row and column of the output and of the input.
        taps = weight.view(sets, side, side, side, side)
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        for kernel in self.kernels:
            branch = self.get_submodule(f"repconv{kernel}")
            assert isinstance(branch, ConvModule)
            assert isinstance(branch.bn, nn.BatchNorm2d)
            scale, shift = scale_and_shift(branch.bn)
            filters = branch.conv.weight.double() * scale[:, None, None, None]
            # Each weight of a filter is a diagonal of the matrix, without the inputs that lie in the padding.
            for down, right in itertools.product(range(-(kernel // 2), kernel // 2 + 1), repeat=2):
                inside = (rows + down >= 0) & (rows + down < side) & (columns + right >= 0) & (columns + right < side)
                row, column = rows[inside], columns[inside]
                factors = filters[:, 0, kernel // 2 + down, kernel // 2 + right, None]
                taps[:, row, column, row + down, column + right] += factors
            bias += shift[:, None]
            delattr(self, f"repconv{kernel}")
        del self.fc3_bn
        self.kernels = ()
        self.fc3.weight.copy_(weight.view(self.fc3.weight.shape))
        self.fc3.bias = nn.Parameter(bias.flatten().to(self.fc3.weight.dtype), requires_grad=False)


class FeedForward(ChainedModule, ResidualModule):
    """Two 1x1 convolutions with batch norms, GELU between them, plus the residual: (N, C, H, W) → (N, C, H, W)."""

    chains: ClassVar[Chains] = (("ffn_fc1.conv", "ffn_fc1.bn", "ffn_fc1.relu", "act"),)

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.ffn_fc1 = ConvModule(channels, hidden, 1, norm=True)
        self.ffn_fc2 = ConvModule(hidden, channels, 1, norm=True)
        self.act = nn.GELU()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return add_layer(residual, self.ffn_fc2, self.act(self.ffn_fc1(x)))


class Block(ChainedModule):
    """The mixer and the channel MLP, each on the normalised map and plus its input: (N, C, H, W) → (N, C, H, W)."""

    chains: ClassVar[Chains] = (("prebn2", "ffn_block.ffn_fc1.conv"),)

    def __init__(self, spec: RepMLPNetSpec, stage: int) -> None:
        super().__init__()
        channels = spec.stage_channels[stage]
        self.repmlp_block = PartitionMixer(
            channels,
            spec.partitions[stage],
            spec.share_sets[stage],
            spec.reduction,
            () if spec.deploy else spec.kernels,
        )
        self.ffn_block = FeedForward(channels, channels * spec.mlp_ratio)
        self.prebn1 = UnfoldedBatchNorm2d(channels)  # channels with different norms share weights
        self.prebn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.repmlp_block(self.prebn1(x), x)
        out: Tensor = self.ffn_block(self.prebn2(x), x)
        return out


class RepMLPNet(ChainedModule):
    """The backbone: normalised float (N, 3, H, W) RGB → levels (N, C, H/s, W/s), s = 4, 8, 16, 32.

    H and W are multiples of the spec's `training_side`; others raise ValueError.
    """

    def __init__(self, spec: RepMLPNetSpec) -> None:
        super().__init__()
        self.conv_embedding = PatchEmbedding(3, spec.stage_channels[0], 4)
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(spec, stage) for _ in range(depth)) for stage, depth in enumerate(spec.stage_depths)
        )
        self.embeds = nn.ModuleList(
            PatchEmbedding(channels, out_channels, 2)
            for channels, out_channels in zip(spec.stage_channels[:-1], spec.stage_channels[1:], strict=True)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.conv_embedding(x)
        levels = []
        for at, blocks in enumerate(self.stages):
            if at > 0:
                x = self.embeds[at - 1](x)
            for block in blocks.children():
                x = block(x)
            levels.append(x)
        return levels[0], levels[1], levels[2], levels[3]


class RepMLPNetClassifier(RepMLPNet):
    """Backbone, batch norm, mean over positions, linear: normalised float (N, 3, H, W) RGB → logits (N, classes)."""

    def __init__(self, spec: RepMLPNetSpec, num_classes: int) -> None:
        super().__init__(spec)
        # Folded into `head`, the features would lack it.
        self.head_norm = UnfoldedBatchNorm2d(spec.stage_channels[-1])
        self.head = nn.Linear(spec.stage_channels[-1], num_classes)

    def features(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.head_norm(super().forward(x)[-1])
        return normalised.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.head(self.features(x))
        return out


def _infer(shapes: StateDictShapes, prefix: str) -> RepMLPNetSpec:
    channels, depths, sets, sides = [], [], [], []
    first = f"{prefix}stages.0.0."
    for stage in range(4):
        block = f"{prefix}stages.{stage}.0."
        positions = shapes.axis(f"{block}repmlp_block.fc3.weight", 1)
        channels.append(shapes.rows(f"{block}prebn1.weight"))
        depths.append(shapes.count(f"{prefix}stages.{stage}."))
        sets.append(shapes.rows(f"{block}repmlp_block.fc3.weight") // max(positions, 1))
        sides.append(math.isqrt(positions))
    kernels = shapes.names(f"{first}repmlp_block.repconv")
    return RepMLPNetSpec(
        stage_channels=as_four(channels),
        stage_depths=as_four(depths),
        share_sets=as_four(sets),
        partitions=as_four(sides),
        reduction=channels[0] // max(shapes.rows(f"{first}repmlp_block.gp.fc1.weight"), 1),
        mlp_ratio=shapes.rows(f"{first}ffn_block.ffn_fc1.conv.weight") // max(channels[0], 1),
        kernels=tuple(sorted(int(name) for name in kernels if name.isdecimal())) or (1, 3),
        # Without biases the form is that of the norms' names, so that the right tensors are named as missing.
        deploy=f"{first}repmlp_block.fc3.bias" in shapes.tensors
        or not any(".fc3_bn." in name for name in shapes.tensors),
    )


def _reparameterise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, PartitionMixer):
            module.reparameterise()


NETWORK = BackboneNetwork(
    build=RepMLPNet,
    build_classifier=RepMLPNetClassifier,
    key="stages.0.0.repmlp_block.fc3.weight",
    infer=_infer,
    reparameterise=_reparameterise,
)
