"""Inferring the architecture from a checkpoint's tensor names and shapes."""

from __future__ import annotations

from pydantic import ValidationError

from model.errors import BundleInvalid
from model.families.registry import FAMILIES, ArchitectureSpec
from model.net.network import StateDictShapes, meta_network, network_of
from model.net.weights import state_dict_mismatch
from model.zoo.checkpoint import Checkpoint


def infer_architecture(checkpoint: Checkpoint) -> tuple[ArchitectureSpec, int]:
    """The architecture and the number of classes. All tensors match it.

    Raises:
        BundleInvalid: the tensors are of no registered family, or some are missing, unexpected, or of another shape or
            kind than the others imply.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    networks = {name: network_of(family) for name, family in FAMILIES.items()}
    family = next((name for name, network in networks.items() if network.class_key in tensors), None)
    if family is None:
        keys = ", ".join(network.class_key for network in networks.values())
        raise BundleInvalid(
            f"{path} is no supported network ({', '.join(networks)}): it has none of the tensors {keys}"
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
            f"{path} looks like a {family}, but its tensors imply {first['loc'][-1]} {first['input']}"
        ) from error
    if num_classes == 0:
        raise BundleInvalid(
            f"{path} looks like a {family}, but {networks[family].class_key} has too few rows for a class"
        )
    if problems := state_dict_mismatch(meta_network(architecture, num_classes), tensors):
        raise BundleInvalid(f"{path} looks like a {family} of {num_classes} classes, but {problems}")
    return architecture, num_classes
