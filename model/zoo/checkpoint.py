"""Reading and writing PyTorch checkpoints (`.pth`).

Checkpoints are pickles, and a pickle can run any program. Only what torch's weights-only reader accepts is read:
tensors, containers and plain values. A file with anything else is refused.
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
"""Of the file, and of its tensors. The largest published network has 62 M parameters; a file may also have the
optimizer's state."""
MAX_TENSORS = 10_000
WRAPPERS = ("state_dict", "model")
"""Keys under which toolboxes store a state dict."""
DATA_PARALLEL_PREFIX = "module."
"""Added to each key by torch's DataParallel."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Dense CPU tensors by key, which may be memory-mapped; `labels` are the class names in the file, if any."""

    path: Path
    tensors: dict[str, Tensor]
    labels: tuple[str, ...] | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a state dict, bare or wrapped by a toolbox. No code in the file is run.

    Raises:
        BundleInvalid: the file is missing, too large, truncated, no checkpoint, without a state dict, or needs code
            to run.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise BundleInvalid(f"{path} is empty")
    if size > MAX_BYTES:
        raise BundleInvalid(
            f"{path} has {size:,} bytes; the limit is {MAX_BYTES:,}; save the state dict without the optimizer's state"
        )
    if zipped:
        _check_archive(path)
    document = _load(path, mmap=zipped)
    tensors = _checked(path, _state_dict(path, document))
    if all(name.startswith(DATA_PARALLEL_PREFIX) for name in tensors):
        tensors = {name.removeprefix(DATA_PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}
    return Checkpoint(path, tensors, _labels(document))


def _check_archive(path: Path) -> None:
    """torch.save does not compress; a compressed archive could expand without bound."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BundleInvalid(f"{path} is truncated or corrupt: {error}") from error
    if not stored:
        raise BundleInvalid(f"{path} is no checkpoint: it has compressed parts, which torch.save never writes")


def _load(path: Path, *, mmap: bool) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's age; nothing that its reader can change
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise BundleInvalid(f"{path} is not a checkpoint as torch.save writes it, or is corrupt") from error
        raise BundleInvalid(
            f"{path} needs {wanted[1]} to load; only plain tensors are read. If you trust the file, load it and save "
            "its state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # arbitrary bytes raise arbitrary exceptions in the unpickler
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
        f"{path} has no state dict; expected tensors by name, alone or under {' or '.join(map(repr, WRAPPERS))}"
    )


def _checked(path: Path, found: Mapping[object, object]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    total = 0
    if not 0 < len(found) <= MAX_TENSORS:
        raise BundleInvalid(f"{path} has {len(found):,} tensors; expected 1 to {MAX_TENSORS:,}")
    for name, tensor in found.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise BundleInvalid(f"{path}: {str(name)[:80]!r} in its state dict is not a named tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise BundleInvalid(f"{path}: {name} is sparse, quantized or without values; expected a dense tensor")
        # A tensor with stride 0 repeats its bytes, so the file's size does not bound it.
        total += tensor.numel() * tensor.element_size()
        tensors[name] = tensor
    if total > MAX_BYTES:
        raise BundleInvalid(f"{path} has tensors of {total:,} bytes; the limit is {MAX_BYTES:,}")
    return tensors


def _labels(document: object) -> tuple[str, ...] | None:
    """The class names in mmcv's `meta`; None unless they are non-empty strings."""
    meta = document.get("meta") if isinstance(document, Mapping) else None
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if not isinstance(names, (tuple, list)) or not names:
        return None
    if not all(isinstance(name, str) and name.strip() for name in names):
        return None
    return tuple(names)


def export_checkpoint(bundle: Bundle, file: Path) -> None:
    """Write a bundle's tensors, bit for bit, under the authors' names, atomically; an existing file is replaced.

    A family with wrapped checkpoints is written as mmcv does, with the class names in `meta`; others as a bare state
    dict.

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
    tensors = {name: found[name] for name in network.state_dict()}
    if network_of(family_of(config.architecture)).wrapped:
        document: dict[str, object] = {"meta": {"CLASSES": config.labels}, "state_dict": tensors}
    else:
        document = dict(tensors)
    content = io.BytesIO()  # torch.save hides the system's error if a file cannot be written
    torch.save(document, content)
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}-", delete=False) as scratch:
        try:
            scratch.write(content.getbuffer())
            scratch.flush()
            os.fsync(scratch.fileno())
            os.fchmod(scratch.fileno(), 0o644)  # another user may read it
            Path(scratch.name).replace(file)
        except BaseException:
            Path(scratch.name).unlink(missing_ok=True)
            raise
