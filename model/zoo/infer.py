"""Inferring the architecture from a checkpoint's tensor names and shapes."""

from __future__ import annotations

import torch
from pydantic import ValidationError

from model.errors import BundleInvalid
from model.families.registry import BACKBONES, FAMILIES, ArchitectureSpec, backbone_of
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
            f"{first['input']}"
        ) from error
    except BundleInvalid as error:
        raise BundleInvalid(f"{error.detail}; {_prefix(checkpoint)}{_nearest(checkpoint)}") from error
    if num_classes == 0:
        raise BundleInvalid(
            f"{path} looks like a {family}, but {networks[family].class_key} has too few rows for a class"
        )
    if problems := state_dict_mismatch(meta_network(architecture, num_classes), tensors):
        raise BundleInvalid(
            f"{path} looks like a {family} of {num_classes} classes, but {_prefix(checkpoint)}{problems}"
        )
    return architecture, num_classes


def _prefix(checkpoint: Checkpoint) -> str:
    return f"without the prefix {checkpoint.prefix} of all names, " if checkpoint.prefix else ""


def _nearest(checkpoint: Checkpoint) -> str:
    """The known network that shares the most tensor names, and its first differences."""
    tensors = checkpoint.tensors
    best: tuple[int, ArchitectureSpec] | None = None
    for architecture in _candidates(checkpoint):
        shared = len(meta_network(architecture, 1).state_dict().keys() & tensors.keys())
        if shared and (best is None or shared > best[0]):
            best = shared, architecture
    if best is None:
        listed = ", ".join(list(tensors)[:5])
        return f"its {len(tensors)} tensors are of no known backbone ({', '.join(BACKBONES)}); the first are {listed}"
    shared, nearest = best
    backbone = nearest.backbone
    # The number of classes is not known, so its tensors' shapes are not compared.
    shapes = meta_network(nearest, 1).state_dict()
    known = {name: shapes.get(name, tensor) for name, tensor in tensors.items()}
    return (
        f"the nearest is a {nearest.family} on {backbone_of(backbone).name} of size {backbone.size}, with "
        f"{shared} of {len(shapes)} tensors; "
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
    return found
