"""Writing a bundle as a PyTorch checkpoint (`.pth`)."""

from __future__ import annotations

import io
from pathlib import Path

import safetensors.torch
import torch

from model.bundle import Bundle
from model.families.registry import family_of
from model.files import replace_file
from model.net.network import build_network, network_of
from model.net.weights import load_weights
from model.zoo.stored_bundle import StoredBundle, with_stored_bundle


def export_checkpoint(bundle: Bundle, file: Path) -> None:
    """Write a bundle's tensors under the authors' names, atomically; an existing file is replaced.

    They are written bit for bit, except that int8 weights become float32.

    A family with wrapped checkpoints is written as mmcv does, with the class names in `meta`; others as a bare state
    dict. Both have the bundle's labels, pipeline and source along (`model/zoo/stored_bundle.py`).

    Args:
        bundle: as read by `read_bundle`.
        file: the `.pth`; its folder must exist.

    Raises:
        BundleInvalid: the weights do not fit the architecture.
        OSError: the file cannot be written.
    """
    config = bundle.config
    network = build_network(config.architecture, len(config.labels))
    load_weights(network, bundle)
    # The network gives only the order of the keys; its own tensors are always float32.
    found = safetensors.torch.load_file(bundle.weights_path)
    quantised = config.precision == "int8"  # no toolbox reads such weights; they are written as floats
    tensors = {name: tensor if quantised else found[name] for name, tensor in network.state_dict().items()}
    stored = StoredBundle.of(config, tensors)
    document = with_stored_bundle(tensors, stored, wrapped=network_of(family_of(config.architecture)).wrapped)
    content = io.BytesIO()  # torch.save hides the system's error if a file cannot be written
    torch.save(document, content)
    replace_file(file, content.getbuffer(), mode=0o644)  # another user may read it
