"""ConvMLP, backbone and classifier (arXiv 2109.04454, section 3): conv tokenizer, conv stage, conv-MLP stages.

Parameter names are those of the authors' checkpoints. Convolutions take (N, C, H, W). The conv-MLP stages take
(N, H, W, C), where a channel MLP is a matrix product and LayerNorm needs no transposition.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from model.families.convmlp import ConvMLPSpec
from model.net.layers import ChainedModule, Chains, ChannelMLP
from model.net.network import BackboneNetwork, StateDictShapes


class ConvTokenizer(nn.Module):
    """Three 3x3 convolutions and a max-pooling: (N, 3, H, W) → (N, C, H/4, W/4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.block = nn.Sequential(
            nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, half, 3, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class ConvStage(nn.Module):
    """Residual bottlenecks of 1x1, 3x3, 1x1 convolutions, then a strided 3x3: (N, C, H, W) → (N, D, H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        self.conv_blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(out_channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for _ in range(blocks)
        )
        self.downsample = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.conv_blocks:
            x = x + block(x)
        out: Tensor = self.downsample(x)
        return out


class ConvMLPBlock(ChainedModule):
    """Channel MLP, depthwise 3x3 convolution, channel MLP, on (N, H, W, C) (section 3.3, figure 2).

    The MLPs are residual; the convolution is not.
    """

    chains: ClassVar[Chains] = (("norm1", "channel_mlp1"), ("norm2", "channel_mlp2"))

    def __init__(self, channels: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.channel_mlp1 = ChannelMLP(channels, channels * mlp_ratio)
        self.connect_norm = nn.LayerNorm(channels)
        self.connect = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm2 = nn.LayerNorm(channels)
        self.channel_mlp2 = ChannelMLP(channels, channels * mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel_mlp1(self.norm1(x), x)
        x = self.connect(self.connect_norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = self.channel_mlp2(self.norm2(x), x)
        return out


class ConvDownsample(nn.Module):
    """A strided 3x3 convolution: (N, H, W, C) → (N, H/2, W/2, D)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.downsample(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class ConvMLPStage(nn.Module):
    """Blocks on (N, H, W, C), then downsampling to `out_channels` unless it is None."""

    def __init__(self, channels: int, depth: int, mlp_ratio: int, out_channels: int | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvMLPBlock(channels, mlp_ratio) for _ in range(depth))
        self.downsample_mlp = ConvDownsample(channels, out_channels) if out_channels is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.downsample_mlp(x)
        return out


class ConvMLP(nn.Module):
    """The backbone: normalised float (N, 3, H, W) RGB → four feature levels (N, C, H/s, W/s), s = 4, 8, 16, 32.

    The levels are the outputs of the tokenizer, the conv stage, and the first and last conv-MLP stage. The second
    conv-MLP stage's output, also at stride 32, is not a level. Odd sizes round up at every halving.
    """

    def __init__(self, spec: ConvMLPSpec) -> None:
        super().__init__()
        first, second, third = spec.stage_channels
        self.tokenizer = ConvTokenizer(spec.tokenizer_channels)
        self.conv_stages = ConvStage(spec.tokenizer_channels, first, spec.conv_blocks)
        self.stages = nn.ModuleList(
            ConvMLPStage(channels, depth, ratio, out_channels)
            for channels, depth, ratio, out_channels in zip(
                (first, second, third), spec.stage_depths, spec.mlp_ratios, (second, third, None), strict=True
            )
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        level4 = self.tokenizer(x)
        level8 = self.conv_stages(level4)
        level16 = self.stages[0](level8.permute(0, 2, 3, 1))
        level32 = self.stages[2](self.stages[1](level16))
        return level4, level8, level16.permute(0, 3, 1, 2), level32.permute(0, 3, 1, 2)


class ConvMLPClassifier(ConvMLP):
    """Backbone, LayerNorm, mean over positions, linear: normalised float (N, 3, H, W) RGB → logits (N, classes).

    A subclass, because the authors' classifier checkpoints have the backbone's parameters without a prefix.
    """

    def __init__(self, spec: ConvMLPSpec, num_classes: int) -> None:
        super().__init__(spec)
        channels = spec.stage_channels[-1]
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)

    def features(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(super().forward(x)[-1].permute(0, 2, 3, 1))
        return normalised.mean(dim=(1, 2))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.head(self.features(x))
        return out


def _infer(shapes: StateDictShapes, prefix: str) -> ConvMLPSpec:
    stages = [f"{prefix}stages.{index}.blocks." for index in range(3)]
    channels = [shapes.rows(f"{stage}0.norm1.weight") for stage in stages]
    hidden = [shapes.rows(f"{stage}0.channel_mlp1.fc1.weight") for stage in stages]
    first, second, third = (
        (wide, shapes.count(stage), many // max(wide, 1))
        for stage, wide, many in zip(stages, channels, hidden, strict=True)
    )
    return ConvMLPSpec(
        tokenizer_channels=shapes.rows(f"{prefix}tokenizer.block.6.weight"),
        conv_blocks=shapes.count(f"{prefix}conv_stages.conv_blocks."),
        stage_channels=(first[0], second[0], third[0]),
        stage_depths=(first[1], second[1], third[1]),
        mlp_ratios=(first[2], second[2], third[2]),
    )


NETWORK = BackboneNetwork(
    build=ConvMLP, build_classifier=ConvMLPClassifier, key="tokenizer.block.0.weight", infer=_infer
)
