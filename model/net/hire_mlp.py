"""Hire-MLP, backbone and classifier (arXiv 2108.13341, section 3): regions of rows and of columns are mixed.

Parameter names are those of the authors' checkpoints. All maps are (N, C, H, W).
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.families.hire_mlp import HireMLPSpec
from model.net.fold import fold_into_next
from model.net.layers import ChainedModule, Chains, ResidualModule, UnfoldedBatchNorm2d, add_layer
from model.net.network import BackboneNetwork, StateDictShapes

ROWS, COLUMNS = 1, 2
"""The axes of a map (N, H, W, C) along which regions are cut."""
LEAST_SIDE = 3
"""Of an input; smaller ones are padded with zeros."""


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules in order, by name."""
    return nn.Sequential(OrderedDict(modules))


def _embedding(channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    return _named(
        proj=nn.Conv2d(channels, out_channels, kernel, stride, padding),
        norm=nn.BatchNorm2d(out_channels),
        act=nn.ReLU(inplace=True),
    )


def _mlp(channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return _named(fc1=nn.Conv2d(channels, hidden, 1), act=nn.GELU(), fc2=nn.Conv2d(hidden, out_channels, 1))


def cut_regions(x: Tensor, axis: int, size: int, step: int) -> Tensor:
    """Move a map by `step` and cut an axis into regions: (N, H, W, C) → the same with L / size positions, rounded up,
    along the axis, and C · size channels.

    The map is a ring: what leaves at its end returns at its beginning, and the last region, where it is not full, goes
    on with the map's beginning. A region's channels are ordered by (channel, position), as the authors' weights are.
    """
    length = x.shape[axis]
    full = (length + size - 1) // size * size
    if step or full != length:
        x = x.index_select(axis, (torch.arange(full, device=x.device) - step) % length)
    out: Tensor = x.unflatten(axis, (-1, size)).movedim(axis + 1, 4).flatten(3)
    return out


def join_regions(x: Tensor, axis: int, size: int, step: int, length: int) -> Tensor:
    """The inverse of `cut_regions`, for a map of `length` along the axis."""
    x = x.unflatten(3, (-1, size)).movedim(4, axis + 1).flatten(axis, axis + 1)
    if step:
        return x.index_select(axis, (torch.arange(length, device=x.device) + step) % length)
    return x.narrow(axis, 0, length)


MAX_CACHED_ORDERS = 128
"""A network has some forty for a size of its inputs."""


@lru_cache(MAX_CACHED_ORDERS)
@torch.inference_mode(mode=False)
def region_orders(
    height: int, width: int, axis: int, size: int, step: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """`cut_regions` and `join_regions` as orders of a map's positions, for channels in the order (position, channel).

    Position i of the regions is position first[i] of the map; position i of the map is position second[i] of the
    regions.
    """
    positions = torch.arange(height * width, device=device).view(1, height, width, 1)
    cut = cut_regions(positions, axis, size, step)
    of_regions = torch.arange(cut.numel(), device=device).view(cut.shape)
    join = join_regions(of_regions, axis, size, step, (height, width)[axis - ROWS])
    return cut.flatten().int(), join.flatten().int()


class RegionMixer(ChainedModule, ResidualModule):
    """Three branches on (N, C, H, W), weighted by channel: regions of rows, regions of columns, single positions."""

    chains: ClassVar[Chains] = (("mlp_h1", "mlp_h1_norm", "act_h"), ("mlp_w1", "mlp_w1_norm", "act_w"))

    def __init__(self, channels: int, region: int, step: int) -> None:
        super().__init__()
        self.region, self.step = region, step
        self.reordered = False
        hidden = channels // 2
        self.mlp_h1 = nn.Conv2d(channels * region, hidden, 1, bias=False)
        self.mlp_h1_norm = nn.BatchNorm2d(hidden)
        self.act_h = nn.ReLU(inplace=True)
        self.mlp_h2 = nn.Conv2d(hidden, channels * region, 1)
        self.mlp_w1 = nn.Conv2d(channels * region, hidden, 1, bias=False)
        self.mlp_w1_norm = nn.BatchNorm2d(hidden)
        self.act_w = nn.ReLU(inplace=True)
        self.mlp_w2 = nn.Conv2d(hidden, channels * region, 1)
        self.mlp_c = nn.Conv2d(channels, channels, 1)
        self.reweight = _mlp(channels, channels // 4, 3 * channels)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        rows = self._mixed(x, ROWS, self.mlp_h1, self.mlp_h1_norm, self.act_h, self.mlp_h2)
        columns = self._mixed(x, COLUMNS, self.mlp_w1, self.mlp_w1_norm, self.act_w, self.mlp_w2)
        single = self.mlp_c(x)
        blend = self._blend_reordered if self.reordered else self._blend
        return add_layer(residual, self.proj, blend(rows, columns, single))

    def _blend(self, rows: Tensor, columns: Tensor, single: Tensor) -> Tensor:
        mean = (rows + columns + single).mean(dim=(2, 3), keepdim=True)
        shares = F.softmax(self.reweight(mean).unflatten(1, (-1, 3)), dim=2)  # (N, C, 3, 1, 1)
        return rows * shares[:, :, 0] + columns * shares[:, :, 1] + single * shares[:, :, 2]

    def _blend_reordered(self, rows: Tensor, columns: Tensor, single: Tensor) -> Tensor:
        """The same with fewer passes over the maps, the first of which is overwritten."""
        branches = (rows, columns, single)
        means = [branch.mean(dim=(2, 3), keepdim=True) for branch in branches]
        shares = F.softmax(self.reweight(means[0] + means[1] + means[2]).unflatten(1, (3, -1)), dim=1)
        blended = rows.mul_(shares[:, 0])
        return blended.addcmul_(columns, shares[:, 1]).addcmul_(single, shares[:, 2])

    def _mixed(self, x: Tensor, axis: int, *layers: nn.Module) -> Tensor:
        """The layers applied to regions along an axis of the map."""
        if self.reordered:
            return self._mixed_reordered(x, axis, *layers)
        positions = x.permute(0, 2, 3, 1)
        regions = cut_regions(positions, axis, self.region, self.step).permute(0, 3, 1, 2)
        for layer in layers:
            regions = layer(regions)
        length = positions.shape[axis]
        out = join_regions(regions.permute(0, 2, 3, 1), axis, self.region, self.step, length)
        return out.permute(0, 3, 1, 2)

    def _mixed_reordered(self, x: Tensor, axis: int, *layers: nn.Module) -> Tensor:
        batch, channels, height, width = x.shape
        cut, join = region_orders(height, width, axis, self.region, self.step, x.device)
        regions = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels).index_select(1, cut)
        count = len(cut) // self.region
        sides = (count // width, width) if axis == ROWS else (height, count // height)
        regions = regions.view(batch, *sides, self.region * channels).permute(0, 3, 1, 2)
        for layer in layers:
            regions = layer(regions)
        positions = regions.permute(0, 2, 3, 1).reshape(batch, len(cut), channels).index_select(1, join)
        return positions.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def after_folding(self) -> None:
        """Reorder channels: of a region by (position, channel), so that it is cut in runs of channels; of the shares by
        (branch, channel), so that each branch's are a vector."""
        for conv in (self.mlp_h1, self.mlp_w1):
            weight = conv.weight.unflatten(1, (-1, self.region)).transpose(1, 2).flatten(1, 2)
            conv.weight.copy_(weight)
        last = self.reweight.fc2
        assert isinstance(last, nn.Conv2d)
        for conv, parts in ((self.mlp_h2, self.region), (self.mlp_w2, self.region), (last, 3)):
            assert conv.bias is not None
            for tensor in (conv.weight, conv.bias):
                tensor.copy_(tensor.unflatten(0, (-1, parts)).transpose(0, 1).flatten(0, 1))
        self.reordered = True


class Block(ChainedModule):
    """The mixer and a channel MLP, each on the normalised map and plus its input: (N, C, H, W) → (N, C, H, W)."""

    chains: ClassVar[Chains] = (("norm2", "mlp.fc1", "mlp.act"),)

    def __init__(self, channels: int, mlp_ratio: int, region: int, step: int) -> None:
        super().__init__()
        self.norm1: nn.Module = UnfoldedBatchNorm2d(channels)  # several layers take its output
        self.attn = RegionMixer(channels, region, step)
        self.norm2 = nn.BatchNorm2d(channels)
        self.mlp = _mlp(channels, channels * mlp_ratio, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x), x)
        first, act, second = self.mlp
        return add_layer(x, second, act(first(self.norm2(x))))

    def after_folding(self) -> None:
        """Let each layer that takes the first norm's output compute it: none of them pads with zeros."""
        assert isinstance(self.norm1, nn.BatchNorm2d)
        for layer, repeats in (
            (self.attn.mlp_h1, self.attn.region),
            (self.attn.mlp_w1, self.attn.region),
            (self.attn.mlp_c, 1),
        ):
            fold_into_next(self.norm1, layer, repeats)
        self.norm1 = nn.Identity()


class Stages(ChainedModule):
    """What backbone and classifier share: normalised float (N, 3, H, W) RGB → maps (N, C, H/s, W/s), s = 4, 8, 16, 32.

    The first division rounds down, the others up.
    """

    def __init__(self, spec: HireMLPSpec) -> None:
        super().__init__()
        self.patch_embed = _embedding(3, spec.stage_channels[0], 7, 4, 2)
        self.network = nn.ModuleList()
        for at, (channels, depth) in enumerate(zip(spec.stage_channels, spec.stage_depths, strict=True)):
            if at > 0:
                self.network.append(_embedding(spec.stage_channels[at - 1], channels, 3, 2, 1))
            steps = (block % spec.shift_periods[at] * spec.shift_steps[at] for block in range(depth))
            region = spec.region_sizes[at]
            self.network.append(nn.Sequential(*(Block(channels, spec.mlp_ratio, region, step) for step in steps)))

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # The embedding's kernel must fit: of a narrow picture an input may have a side of one pixel.
        lacking = [max(LEAST_SIDE - side, 0) for side in x.shape[2:]]
        x = self.patch_embed(F.pad(x, (0, lacking[1], 0, lacking[0])) if any(lacking) else x)
        found = []
        for at, part in enumerate(self.network):
            x = part(x)
            if at % 2 == 0:
                found.append(x)
        return found[0], found[1], found[2], found[3]


class HireMLP(Stages):
    """The backbone: normalised float (N, 3, H, W) RGB → levels, each map with a batch norm of its own.

    Classifiers do not have those norms; the next stage takes the map as it is before its norm.
    """

    def __init__(self, spec: HireMLPSpec) -> None:
        super().__init__(spec)
        norms = (UnfoldedBatchNorm2d(channels) for channels in spec.stage_channels)
        self.norm0, self.norm2, self.norm4, self.norm6 = norms  # numbered as their stages in `network`

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second, third, fourth = self.maps(x)
        return self.norm0(first), self.norm2(second), self.norm4(third), self.norm6(fourth)


class HireMLPClassifier(Stages):
    """Stages, batch norm, mean over positions, linear: normalised float (N, 3, H, W) RGB → logits (N, classes)."""

    def __init__(self, spec: HireMLPSpec, num_classes: int) -> None:
        super().__init__(spec)
        self.norm = UnfoldedBatchNorm2d(spec.stage_channels[-1])  # folded into `head`, the features would lack it
        self.head = nn.Linear(spec.stage_channels[-1], num_classes)

    def features(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.maps(x)[-1])
        return normalised.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


def _infer(shapes: StateDictShapes, prefix: str) -> HireMLPSpec:
    stages = [f"{prefix}network.{2 * at}." for at in range(4)]
    first, second, third, fourth = (shapes.rows(f"{stage}0.norm1.weight") for stage in stages)
    channels = (first, second, third, fourth)
    depth1, depth2, depth3, depth4 = (shapes.count(stage) for stage in stages)
    region1, region2, region3, region4 = (
        shapes.axis(f"{stage}0.attn.mlp_h1.weight", 1) // max(wide, 1)
        for stage, wide in zip(stages, channels, strict=True)
    )
    return HireMLPSpec(
        stage_channels=channels,
        stage_depths=(depth1, depth2, depth3, depth4),
        mlp_ratio=shapes.rows(f"{stages[0]}0.mlp.fc1.weight") // max(first, 1),
        region_sizes=(region1, region2, region3, region4),
    )


NETWORK = BackboneNetwork(
    build=HireMLP, build_classifier=HireMLPClassifier, key="network.0.0.attn.mlp_h1.weight", infer=_infer
)
