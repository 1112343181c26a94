"""The torch part of model families and backbones: building, running, and inference from a checkpoint."""

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
    """Lookups in a checkpoint's tensor names and shapes; `path` is for error messages."""

    path: Path
    tensors: Mapping[str, Tensor]

    def rows(self, name: str) -> int:
        """The length of a tensor's first axis, the output channels of a weight.

        Raises:
            BundleInvalid: there is no such tensor, or it is a scalar.
        """
        return self.axis(name, 0)

    def axis(self, name: str, axis: int) -> int:
        """The length of an axis of a tensor.

        Raises:
            BundleInvalid: there is no such tensor, or it has no such axis.
        """
        if name not in self.tensors or self.tensors[name].ndim <= axis:
            raise BundleInvalid(f"{self.path}: tensor {name} is missing")
        return self.tensors[name].shape[axis]

    def names(self, prefix: str) -> set[str]:
        """The names that follow `prefix`, such as `stages.0.blocks.`, up to the next dot."""
        return {name[len(prefix) :].partition(".")[0] for name in self.tensors if name.startswith(prefix)}

    def count(self, prefix: str) -> int:
        """The number of modules below `prefix`."""
        return len(self.names(prefix))


def as_four(values: Sequence[int]) -> tuple[int, int, int, int]:
    """The numbers of four stages."""
    first, second, third, fourth = values
    return first, second, third, fourth


@dataclass(frozen=True, slots=True)
class BackboneNetwork(Generic[B]):
    """The torch part of a backbone.

    Args:
        build: spec → a module: normalised float (N, 3, H, W) RGB → four feature levels (N, C, H/s, W/s),
            s = 4, 8, 16, 32.
        build_classifier: spec, number of classes → a module from the same input to logits (N, classes). Parameter
            names are those of the published classifier checkpoints; the last layer is `head`, an `nn.Linear`. Its
            input is `features(x)`, (N, `embedding_dimension`), which no folding changes.
        key: a state-dict key, without prefix, that no other backbone has.
        infer: shapes, prefix of the keys → spec.
        reparameterise: changes a network that contains the backbone, in place and with its weights, from the form that
            is trained to an equivalent one with less to compute. None: there is one form.
    """

    build: Callable[[B], nn.Module]
    build_classifier: Callable[[B, int], nn.Module]
    key: str
    infer: Callable[[StateDictShapes, str], B]
    reparameterise: Callable[[nn.Module], None] | None = None


@dataclass(frozen=True, slots=True)
class FamilyNetwork(Generic[S, N]):
    """The torch part of a model family.

    Args:
        build: spec, number of classes → the network, with the parameter names of the published checkpoints.
        predict: network, normalised float (N, 3, h, w) RGB, batch, postprocessing → an output for each row. An
            output never depends on the other rows.
        class_key: the key of the last layer's weight, whose rows count the classes.
        infer: shapes → spec, number of classes.
        score_layer: network → the layer that computes the scores' logits. None if answers have no scores.
        compile: applies torch.compile in place.
        wrapped: whether published checkpoints have mmcv's wrapping, `meta` and `state_dict`.
        key: a state-dict key that no family listed later has. Empty: `class_key` is one.
    """

    build: Callable[[S, int], N]
    predict: Callable[[N, Tensor, Batch, Postprocessing], Sequence[RawOutput]]
    class_key: str
    infer: Callable[[StateDictShapes], tuple[S, int]]
    score_layer: Callable[[N], nn.Linear | nn.Conv2d] | None = None
    compile: Callable[[N], None] = nn.Module.compile
    wrapped: bool = True
    key: str = ""


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
    """The network on torch's meta device: names and shapes without memory."""
    with torch.device("meta"):
        return build_network(architecture, num_classes)


def build_backbone(spec: BackboneSpec) -> nn.Module:
    """A backbone with random weights: normalised float (N, 3, H, W) → levels (N, C, H/s, W/s), s = 4, 8, 16, 32."""
    return backbone_network_of(backbone_of(spec)).build(spec)


def infer_backbone(shapes: StateDictShapes, prefix: str = "backbone.") -> BackboneSpec:
    """The spec of the backbone whose keys begin with `prefix`.

    Raises:
        BundleInvalid: no registered backbone, or one of its tensors is missing.
    """
    networks = {name: backbone_network_of(backbone) for name, backbone in BACKBONES.items()}
    for network in networks.values():
        if prefix + network.key in shapes.tensors:
            spec: BackboneSpec = network.infer(shapes, prefix)
            return spec
    keys = ", ".join(prefix + network.key for network in networks.values())
    raise BundleInvalid(
        f"{shapes.path} has no supported backbone ({', '.join(networks)}): it has none of the tensors {keys}"
    )
