"""The torch part of a family of models and of a backbone: how a network is built, run, and read off a checkpoint."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from model.errors import BundleInvalid
from model.families.registry import (
    BACKBONES,
    ArchitectureSpec,
    BackboneFamily,
    BackboneSpec,
    ModelFamily,
    backbone_of,
    family_of,
)
from model.spec import Postprocessing
from model.types import Batch, RawOutput

S = TypeVar("S", bound=ArchitectureSpec)
B = TypeVar("B", bound=BackboneSpec)
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class StateDictShapes:
    """Questions to the names and shapes of a checkpoint's tensors; `path` is for errors."""

    path: Path
    tensors: Mapping[str, Tensor]

    def rows(self, name: str) -> int:
        """The length of a tensor's first axis: output channels, where it is a layer's weight.

        Raises:
            BundleInvalid: there is no such tensor, or it is a scalar.
        """
        if name not in self.tensors or self.tensors[name].ndim == 0:
            raise BundleInvalid(f"{self.path} is no network that is known here: it has no tensor {name}")
        return self.tensors[name].shape[0]

    def count(self, prefix: str) -> int:
        """How many numbered modules there are behind `prefix`, for example `stages.0.blocks.`."""
        return len({name[len(prefix) :].partition(".")[0] for name in self.tensors if name.startswith(prefix)})


@dataclass(frozen=True, slots=True)
class BackboneNetwork(Generic[B]):
    """How a backbone is built and recognised.

    Args:
        build: numbers → a module from normalised float (N, 3, H, W) RGB to four feature levels (N, C, H/s, W/s),
            s = 4, 8, 16, 32.
        build_classifier: numbers and number of classes → a module from the same input to logits (N, classes), with
            the names of the published classifier checkpoints; its last layer is `head`, an `nn.Linear`.
        key: a tensor that no other backbone has, without any prefix.
        infer: shapes and a prefix → numbers, from the tensors whose names have the prefix.
    """

    build: Callable[[B], nn.Module]
    build_classifier: Callable[[B, int], nn.Module]
    key: str
    infer: Callable[[StateDictShapes, str], B]


@dataclass(frozen=True, slots=True)
class FamilyNetwork(Generic[S, N]):
    """How a family's network is built, run and recognised.

    Args:
        build: numbers and number of classes → the network, with the names of the published checkpoints.
        predict: the network, normalised float (N, 3, h, w) RGB, the batch, thresholds → a row's answer each. An
            answer never depends on the other rows.
        class_key: a tensor that no other family has; it has rows for the classes.
        infer: shapes → numbers, and number of classes.
        score_layer: the network's layer that gives the logits of the scores; None where answers have no scores.
        compile: torch.compile in place of what can be compiled.
        wrapped: whether its published checkpoints have mmcv's wrapping: `meta` and `state_dict`.
    """

    build: Callable[[S, int], N]
    predict: Callable[[N, Tensor, Batch, Postprocessing], Sequence[RawOutput]]
    class_key: str
    infer: Callable[[StateDictShapes], tuple[S, int]]
    score_layer: Callable[[N], nn.Linear | nn.Conv2d] | None = None
    compile: Callable[[N], None] = nn.Module.compile
    wrapped: bool = True


def network_of(family: ModelFamily) -> FamilyNetwork[Any, Any]:
    """The torch part of a family."""
    found = pkgutil.resolve_name(family.network)
    assert isinstance(found, FamilyNetwork)
    return found


def backbone_network_of(backbone: BackboneFamily) -> BackboneNetwork[Any]:
    """The torch part of a backbone."""
    found = pkgutil.resolve_name(backbone.network)
    assert isinstance(found, BackboneNetwork)
    return found


def build_network(architecture: ArchitectureSpec, num_classes: int) -> nn.Module:
    """The network of an architecture, with random weights, in training mode."""
    network: nn.Module = network_of(family_of(architecture)).build(architecture, num_classes)
    return network


def meta_network(architecture: ArchitectureSpec, num_classes: int) -> nn.Module:
    """The network with names and shapes but without memory for its numbers."""
    with torch.device("meta"):
        return build_network(architecture, num_classes)


def build_backbone(spec: BackboneSpec) -> nn.Module:
    """The backbone of these numbers: normalised float (N, 3, H, W) → levels (N, C, H/s, W/s), s = 4, 8, 16, 32."""
    return backbone_network_of(backbone_of(spec)).build(spec)


def infer_backbone(shapes: StateDictShapes, prefix: str = "backbone.") -> BackboneSpec:
    """The numbers of the backbone whose tensors' names begin with `prefix`.

    Raises:
        BundleInvalid: none that is known here, or one of its tensors is missing.
    """
    networks = {name: backbone_network_of(backbone) for name, backbone in BACKBONES.items()}
    for network in networks.values():
        if prefix + network.key in shapes.tensors:
            spec: BackboneSpec = network.infer(shapes, prefix)
            return spec
    keys = ", ".join(prefix + network.key for network in networks.values())
    raise BundleInvalid(
        f"{shapes.path} has none of the backbones that are known here ({', '.join(networks)}); expected one of the "
        f"tensors {keys}"
    )
