"""A `.pth` → its tensors by name, and the class names that a toolbox left beside them; and a bundle → a `.pth`.

Such files are pickles. Only what torch's weights-only reader takes is read: tensors, containers and plain values.
A file that wants anything else is refused, whoever it is from, for a pickle can run any program.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from model.bundle import Bundle
from model.errors import BundleInvalid
from model.families.registry import family_of
from model.net.network import build_network, network_of
from model.net.weights import load_weights

MAX_BYTES = 2 * 2**30
"""Of the file, and of its tensors. The largest published network has 62 M parameters; its optimizer's state may be
in the file as well."""
MAX_TENSORS = 10_000
WRAPPERS = ("state_dict", "model")
"""Under which names toolboxes put a state dict."""
DATA_PARALLEL_PREFIX = "module."
"""What torch's DataParallel puts before each name."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Dense CPU tensors, which may lie in the file still; `labels` where the file tells any, as many as they are."""

    path: Path
    tensors: dict[str, Tensor]
    labels: tuple[str, ...] | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a state dict, bare or as the toolboxes wrap it, without running anything that the file may hold.

    Raises:
        BundleInvalid: no such file, too large, not a checkpoint, truncated, one that wants more than weights, or
            one without a state dict.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise BundleInvalid(f"{path} is empty; expected a checkpoint as torch.save writes it")
    if size > MAX_BYTES:
        raise BundleInvalid(
            f"{path} has {size:,} bytes, at most {MAX_BYTES:,} are read; save its state dict alone, without the "
            "optimizer's"
        )
    if zipped:
        _check_archive(path)
    document = _load(path, mmap=zipped)
    tensors = _checked(path, _state_dict(path, document))
    if all(name.startswith(DATA_PARALLEL_PREFIX) for name in tensors):
        tensors = {name.removeprefix(DATA_PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}
    return Checkpoint(path, tensors, _labels(document))


def _check_archive(path: Path) -> None:
    """torch stores without compression; anything else could grow beyond all bounds when it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BundleInvalid(f"{path} is truncated or corrupt: {error}; fetch or save it again") from error
    if not stored:
        raise BundleInvalid(f"{path} has compressed parts, which torch.save does not write; expected a checkpoint")


def _load(path: Path, *, mmap: bool) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are for who writes such files, not for who reads one
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise BundleInvalid(
                f"{path} is not a checkpoint as torch.save writes it, or is corrupt; fetch or save it again"
            ) from error
        raise BundleInvalid(
            f"{path} wants to run {wanted[1]}, and only plain tensors are read; if you trust where it comes from, "
            "load it where it was made and save its state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # whatever foreign bytes make a pickle machine stumble over
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise BundleInvalid(
            f"{path} is not a checkpoint as torch.save writes it, truncated or corrupt ({type(error).__name__}: "
            f"{reason[:200]})"
        ) from error


def _state_dict(path: Path, document: object) -> Mapping[object, object]:
    if isinstance(document, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(document.get(wrapper), Mapping):
                inner: Mapping[object, object] = document[wrapper]
                return inner
        if document and all(isinstance(value, Tensor) for value in document.values()):
            return document
    raise BundleInvalid(
        f"{path} holds no state dict; expected tensors by name, alone or under {' or '.join(map(repr, WRAPPERS))}"
    )


def _checked(path: Path, found: Mapping[object, object]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    total = 0
    if not 0 < len(found) <= MAX_TENSORS:
        raise BundleInvalid(f"{path} has {len(found):,} tensors; expected 1 to {MAX_TENSORS:,}")
    for name, tensor in found.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise BundleInvalid(f"{path}: {str(name)[:80]!r} in its state dict is no tensor with a name")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise BundleInvalid(f"{path}: {name} is sparse, quantized or without values; expected a dense tensor")
        # A tensor may repeat few bytes many times, so that the file's size does not bound it.
        total += tensor.numel() * tensor.element_size()
        tensors[name] = tensor
    if total > MAX_BYTES:
        raise BundleInvalid(f"{path} has tensors of {total:,} bytes, at most {MAX_BYTES:,} are read")
    return tensors


def _labels(document: object) -> tuple[str, ...] | None:
    """The class names of mmcv's `meta`, where they are what they should be."""
    meta = document.get("meta") if isinstance(document, Mapping) else None
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not isinstance(names, (tuple, list)) or not names:
        return None
    if not all(isinstance(name, str) and name.strip() for name in names):
        return None
    return tuple(names)


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
    if network_of(family_of(config.architecture)).wrapped:
        document: dict[str, object] = {"meta": {"CLASSES": config.labels}, "state_dict": tensors}
    else:
        document = dict(tensors)
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
