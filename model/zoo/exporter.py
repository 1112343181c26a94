"""Bundle → checkpoint: a state dict under the authors' names, wrapped as their toolbox wraps it."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from model.bundle import Bundle
from model.net.build import build_network
from model.net.weights import load_weights
from model.spec import ClassifierSpec


def export_checkpoint(bundle: Bundle, file: Path) -> None:
    """Write the bundle's tensors, bit for bit, whole or not at all; a file of that name is replaced.

    A classifier's state dict is written bare; a detector's or segmenter's as mmcv does, with the class names in
    `meta`.

    Args:
        bundle: as read by `read_bundle`.
        file: the `.pth`; its folder must be there.

    Raises:
        BundleInvalid: the weights do not fit the architecture.
        OSError: the file cannot be written.
    """
    config = bundle.config
    network = build_network(config.architecture, len(config.labels))
    load_weights(network, bundle)
    # The network's own tensors would be float32 whatever the file holds; it only gives the order of names.
    found = safetensors.torch.load_file(bundle.weights_path)
    tensors = {name: found[name] for name in network.state_dict()}
    if isinstance(config.architecture, ClassifierSpec):
        document: dict[str, object] = dict(tensors)
    else:
        document = {"meta": {"CLASSES": config.labels}, "state_dict": tensors}
    content = io.BytesIO()  # torch would hide what the system says of a file that cannot be written
    torch.save(document, content)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}-", delete=False) as scratch:
        try:
            scratch.write(content.getbuffer())
            scratch.flush()
            os.fsync(scratch.fileno())
            os.fchmod(scratch.fileno(), 0o644)  # whoever reads it need not be who wrote it
            Path(scratch.name).replace(file)
        except BaseException:
            Path(scratch.name).unlink(missing_ok=True)
            raise
