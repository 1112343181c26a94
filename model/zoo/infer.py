"""Inferring the architecture from a checkpoint's tensor names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from model.errors import BundleInvalid
from model.families.classifier import ClassifierSpec
from model.families.registry import BACKBONES, FAMILIES, ArchitectureSpec, backbone_of
from model.families.repmlpnet import RepMLPNetSpec
from model.net.network import StateDictShapes, backbone_network_of, meta_network, network_of
from model.net.weights import state_dict_mismatch
from model.types import Task
from model.zoo.checkpoint import Checkpoint


def infer_architecture(checkpoint: Checkpoint) -> tuple[ArchitectureSpec, int]:
    """The architecture and the number of classes. All tensors match it.

    Raises:
        BundleInvalid: the tensors are of no registered family, or some are missing, unexpected, or of another shape or
            kind than the others imply.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    networks = {name: network_of(family) for name, family in FAMILIES.items()}
    family = next((name for name, network in networks.items() if (network.key or network.class_key) in tensors), None)
    if family is None:
        keys = ", ".join(dict.fromkeys(network.class_key for network in networks.values()))
        raise BundleInvalid(
            f"{path} is no supported network ({', '.join(networks)}): {_prefix(checkpoint)}it has none of the tensors "
            f"{keys}; {_nearest(checkpoint)}"
        )
    if not all(tensor.numel() for tensor in tensors.values()):
        raise BundleInvalid(f"{path} has empty tensors")
    architecture: ArchitectureSpec
    num_classes: int
    try:
        architecture, num_classes = networks[family].infer(StateDictShapes(path, tensors))
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleInvalid(
            f"{path} looks like a {family}, but {_prefix(checkpoint)}its tensors imply {first['loc'][-1]} "
            f"{first['input']}; {_nearest(checkpoint)}"
        ) from error
    except BundleInvalid as error:
        raise BundleInvalid(f"{error.detail}; {_prefix(checkpoint)}{_nearest(checkpoint)}") from error
    if num_classes == 0:
        raise BundleInvalid(
            f"{path} looks like a {family}, but {networks[family].class_key} has too few rows for a class"
        )
    if state_dict_mismatch(meta_network(architecture, num_classes), tensors):
        if isinstance(architecture.backbone, RepMLPNetSpec) and _is_half_deployed(tensors):
            raise BundleInvalid(
                f"{path} has a RepMLPNet of which some blocks are in deploy form (fc3.bias) and others as they were "
                "trained (fc3_bn); save it before locality_injection(), or after it was called on every block"
            )
        # A wrong tensor that a size is inferred from would make the right ones differ.
        variants = [architecture, *_published_sizes(architecture)]
        networks_of = [meta_network(variant, num_classes) for variant in variants]
        least = min(range(len(variants)), key=lambda at: _count_differences(networks_of[at], tensors))
        raise BundleInvalid(
            f"{path} looks like a {_title(variants[least])} and {num_classes} classes, but {_prefix(checkpoint)}"
            f"{state_dict_mismatch(networks_of[least], tensors)}"
        )
    return architecture, num_classes


def _title(architecture: ArchitectureSpec) -> str:
    backbone = architecture.backbone
    return f"{architecture.family} on {backbone_of(backbone).name} of size {backbone.size}"


def _published_sizes(architecture: ArchitectureSpec) -> list[ArchitectureSpec]:
    """The family on each published size of its backbone, in the form of the file."""
    form = {"deploy": architecture.backbone.deploy} if isinstance(architecture.backbone, RepMLPNetSpec) else {}
    sizes = backbone_of(architecture.backbone).sizes.values()
    return [architecture.model_copy(update={"backbone": size.model_copy(update=form)}) for size in sizes]


def _count_differences(network: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    """The number of tensors that are in only one of both, or have another shape."""
    expected: dict[str, Tensor] = network.state_dict()
    shared = expected.keys() & tensors.keys()
    different = sum(expected[name].shape != tensors[name].shape for name in shared)
    return len(expected.keys() ^ tensors.keys()) + different


def _is_half_deployed(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a RepMLPNet has blocks in both of its forms."""
    return all(any(part in name for name in tensors) for part in ("repmlp_block.fc3.bias", "repmlp_block.fc3_bn."))


def _prefix(checkpoint: Checkpoint) -> str:
    return f"without the prefix {checkpoint.prefix} of all names, " if checkpoint.prefix else ""


def _nearest(checkpoint: Checkpoint) -> str:
    """The known network that shares the most tensor names, and its first differences."""
    tensors = checkpoint.tensors
    best: tuple[int, int, ArchitectureSpec] | None = None
    for architecture in _candidates(checkpoint):
        network = meta_network(architecture, 1)
        shared, differences = len(network.state_dict().keys() & tensors.keys()), _count_differences(network, tensors)
        # Some sizes differ in their shapes alone.
        if shared and (best is None or (shared, -differences) > best[:2]):
            best = shared, -differences, architecture
    if best is None:
        listed = ", ".join(list(tensors)[:5])
        return f"its {len(tensors)} tensors are of no known backbone ({', '.join(BACKBONES)}); the first are {listed}"
    shared, _, nearest = best
    # The number of classes is not known, so its tensors' shapes are not compared.
    shapes = meta_network(nearest, 1).state_dict()
    known = {name: shapes.get(name, tensor) for name, tensor in tensors.items()}
    return (
        f"the nearest is a {_title(nearest)}, with {shared} of {len(shapes)} tensors; "
        f"{state_dict_mismatch(meta_network(nearest, 1), known)}"
    )


def _candidates(checkpoint: Checkpoint) -> list[ArchitectureSpec]:
    """Of the families on a backbone that the tensors have: the sizes that they imply, or else the published ones."""
    tensors = checkpoint.tensors
    found = []
    for backbone in BACKBONES.values():
        key = backbone_network_of(backbone).key
        whole = key in tensors  # without a prefix it is a classifier's
        if not whole and not any(one.endswith(f".{key}") for one in tensors):
            continue
        for family in FAMILIES.values():
            if (family.task is Task.CLASSIFY) != whole:
                continue
            network = network_of(family)
            with_classes = {network.class_key: torch.empty(64, 1, 1, 1, device="meta"), **tensors}
            try:
                found.append(network.infer(StateDictShapes(checkpoint.path, with_classes))[0])
            except (ValidationError, BundleInvalid):
                sizes = [size for size in backbone.sizes.values() if size.has_levels or whole]
                found += [family.spec(family=family.name, backbone=size) for size in sizes]
    return found or _with_most_names(tensors)


def _with_most_names(tensors: Mapping[str, Tensor]) -> list[ArchitectureSpec]:
    """The published classifiers that have at least half of the tensors' names: the file is a part of one."""
    return [one for one, names in _published_names().items() if 2 * len(names & tensors.keys()) >= len(tensors)]


@cache
def _published_names() -> dict[ClassifierSpec, frozenset[str]]:
    """By published classifier: the names of its tensors. To build all their networks takes most of a second."""
    classifiers = [ClassifierSpec(backbone=size) for backbone in BACKBONES.values() for size in backbone.sizes.values()]
    return {one: frozenset(meta_network(one, 1).state_dict()) for one in classifiers}
