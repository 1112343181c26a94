"""The weights in a checkpoint: one state dict of all that a trainer stored, under the network's own names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from model.errors import BundleInvalid
from model.families.registry import FAMILIES
from model.net.network import network_of
from model.zoo.checkpoint_file import MAX_BYTES, CheckpointFile, read_checkpoint_file
from model.zoo.unpickling import IN_SHARDS, Placeholder

Weights = Literal["raw", "ema"]
"""Of a training with an exponential moving average: the trained weights, or their average."""

T = TypeVar("T")

MAX_TENSORS = 10_000
STATE_DICTS = (
    *("state_dict", "model", "model_state_dict", "net", "params", "module", "model_state", "network", "weights"),
)
"""Keys under which trainers store a state dict, the usual ones first."""
AVERAGES = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema", "ema_model", "model_ema_state_dict"),
    "ema_model_state_dict",
)
"""Keys under which they store its moving average."""
PREFIXES = frozenset({"module", "model", "backbone", "net", "network"})
"""Names of the modules around a network. Another one is a prefix if a network's own names follow it."""

_INNER_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"})
"""Parts of names that torch.compile, FSDP and activation checkpointing add, below any module."""
_AVERAGE_MODULE = re.compile(r"(?:ema|ema_model|model_ema|averaged_model)\.")
_UNUSED = re.compile(
    r"ema_|model_ema\.|auxiliary_head\.|n_averaged$|steps$|(?:.*\.)?total_(?:ops|params)$|optimizer|lr_scheduler|scaler\."
    r"|(?:criterion|loss|loss_fn|loss_func|\w*metrics?|\w*_(?:acc|accuracy|loss))\."
)
"""Tensors that no answer needs: averages, heads and statistics of the training."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Dense CPU tensors by the network's names, which may be memory-mapped.

    `prefix` was removed from each name. `weights`: for people, which set of weights it is, and its key in the file.
    `left_out`: names of tensors beside the network's.
    """

    file: CheckpointFile
    tensors: dict[str, Tensor]
    prefix: str = ""
    weights: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.file.path


@dataclass(frozen=True, slots=True)
class _Found:
    """A state dict, and the key that it lies under."""

    key: str
    tensors: Mapping[Any, object]


@dataclass(frozen=True, slots=True)
class _Sets:
    """The sets of weights in a file; at least one."""

    raw: _Found | None
    average: _Found | None


def read_checkpoint(path: Path, weights: Weights | None = None) -> Checkpoint:
    """Read the state dict of a trainer's file. No code in the file is run.

    Args:
        path: as `read_checkpoint_file` takes it.
        weights: which ones, if the file has trained and averaged weights. None: the averaged ones.

    Raises:
        BundleInvalid: the file cannot be read, has no state dict or several, or not the weights that are asked for.
    """
    file = read_checkpoint_file(path)
    sets = _weight_sets(file)
    chosen, note = _choose(file, sets, weights)
    tensors, left_out = _checked(path, chosen.tensors)
    if weights is None and sets.average is None and any(name.startswith("ema_") for name in left_out):
        note += "; ema_* of mmcv's EMAHook are left out"
    tensors, prefix = _without_prefix(tensors)
    for name in [name for name in tensors if name.endswith("running_mean")]:
        # Batch norms counted no batches before torch 0.4.1, and frozen ones do not today.
        tensors.setdefault(f"{name.removesuffix('running_mean')}num_batches_tracked", torch.tensor(0))
    return Checkpoint(file, tensors, prefix, note, left_out)


def _choose(file: CheckpointFile, sets: _Sets, weights: Weights | None) -> tuple[_Found, str]:
    """The set of weights to take, and what it is, for people. Raises BundleInvalid."""
    raw, average = sets.raw, sets.average
    if raw is not None and average is not None:
        if weights == "raw":
            return raw, f"{raw.key}, the trained weights; {average.key} has their average"
        return average, f"{average.key}, averaged (EMA); --weights raw takes {raw.key}"
    only = average or raw
    assert only is not None
    if weights == "ema" and average is None:
        raise BundleInvalid(
            f"{file.path} has no averaged weights; expected one of {', '.join(AVERAGES)} beside {only.key}; import it "
            "without --weights"
        )
    if weights == "raw" and raw is None:
        raise BundleInvalid(f"{file.path} has only averaged weights ({only.key}); import it without --weights raw")
    return only, f"{only.key}, averaged (EMA)" if raw is None else only.key


def _weight_sets(file: CheckpointFile) -> _Sets:
    """Raises BundleInvalid: there is no state dict, or several that may be meant."""
    content = file.content
    if not isinstance(content, Mapping):
        raise BundleInvalid(f"{file.path} has {_kind(content)}; {_EXPECTED}")
    raw, average = _first(content, STATE_DICTS), _first(content, AVERAGES)
    meta = content.get("meta")
    if isinstance(meta, Mapping) and "mmengine_version" in meta and raw is not None and average is not None:
        raw, average = average, raw  # mmengine's EMAHook exchanges the two when it saves
    elif "averaging_state" in content and "current_model_state" in content:
        raw, average = _first(content, ("current_model_state",)), raw  # Lightning's WeightAveraging does likewise
    if raw is None and average is None:
        raw = _only_state_dict(file.path, content)
    if raw is not None and average is None:
        return _split_average(raw)
    return _Sets(raw, average)


_EXPECTED = (
    "expected tensors by name, alone or under one of " + ", ".join(map(repr, STATE_DICTS)) + "; save them with "
    "torch.save(model.state_dict(), FILE)"
)


def _first(content: Mapping[object, object], keys: tuple[str, ...]) -> _Found | None:
    """The state dict under the first of the keys that has one, perhaps below a second key."""
    for key in keys:
        value = content.get(key)
        if not isinstance(value, Mapping):
            continue
        if _has_tensors(value) or not value:
            return _Found(key, value)
        for inner in STATE_DICTS:
            if isinstance(below := value.get(inner), Mapping) and _has_tensors(below):
                return _Found(f"{key}.{inner}", below)
    return None


def _only_state_dict(path: Path, content: Mapping[object, object]) -> _Found:
    """The content itself, or its only mapping of tensors. Raises BundleInvalid."""
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return _Found("state dict", content)
    found = {key: value for key, value in content.items() if isinstance(value, Mapping) and _is_state_dict(value)}
    if len(found) == 1:
        ((key, tensors),) = found.items()
        return _Found(str(key)[:80], tensors)
    if found:
        listed = ", ".join(str(key)[:80] for key in found)
        raise BundleInvalid(f"{path} has several state dicts ({listed}); save the one to serve alone; {_EXPECTED}")
    for key, value in content.items():
        if isinstance(value, Placeholder) and value.is_module:
            raise BundleInvalid(f"{path}: {str(key)[:80]} is {_kind(value)}; {_EXPECTED}")
    listed = ", ".join(str(key)[:80] for key in list(content)[:5]) or "nothing"
    raise BundleInvalid(f"{path} has no state dict; it has {listed}; {_EXPECTED}")


def _split_average(raw: _Found) -> _Sets:
    """Divides a state dict that has the average as a module, beside the network that it averages."""
    average = {
        _AVERAGE_MODULE.sub("", str(key)): value
        for key, value in raw.tensors.items()
        if _AVERAGE_MODULE.match(str(key))
    }
    trained = {key: value for key, value in raw.tensors.items() if not _AVERAGE_MODULE.match(str(key))}
    if average and (not trained or _bare_names(average) == _bare_names(trained)):
        return _Sets(_Found(raw.key, trained) if trained else None, _Found(f"the average in {raw.key}", average))
    return _Sets(raw, None)


def _bare_names(tensors: Mapping[Any, object]) -> set[str]:
    """The network's names in a state dict."""
    names = {str(key): value for key, value in tensors.items() if not _UNUSED.match(str(key))}
    return set(_without_prefix(names)[0])


def _has_tensors(value: Mapping[object, object]) -> bool:
    return any(isinstance(one, Tensor) for one in value.values())


def _is_state_dict(value: Mapping[object, object]) -> bool:
    return bool(value) and all(isinstance(key, str) and isinstance(one, Tensor) for key, one in value.items())


def _kind(value: object) -> str:
    """What a value is, for people."""
    if isinstance(value, Placeholder):
        kind = "a pickled module" if value.is_module else "an object"
        return f"{kind} ({value.name}), whose code is not run"
    return f"a {type(value).__name__}"


def _checked(path: Path, found: Mapping[object, object]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that a network may need, and the names of the others. Raises BundleInvalid."""
    tensors: dict[str, Tensor] = {}
    left_out = []
    total = 0
    if not 0 < len(found) <= MAX_TENSORS:
        raise BundleInvalid(f"{path} has {len(found):,} tensors; expected 1 to {MAX_TENSORS:,}")
    for key, tensor in found.items():
        if not (isinstance(key, str) and isinstance(tensor, Tensor)):
            raise BundleInvalid(f"{path}: {str(key)[:80]!r} in its state dict is not a named tensor")
        if type(tensor).__module__.startswith("torch.distributed"):  # in a process that has imported it
            raise BundleInvalid(f"{path} {IN_SHARDS}")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise BundleInvalid(f"{path}: {key} is sparse, quantized or without values; expected a dense tensor")
        # A tensor with stride 0 repeats its bytes, so the file's size does not bound it.
        total += tensor.numel() * tensor.element_size()
        name = ".".join(part for part in key.split(".") if part not in _INNER_WRAPPERS)
        if _UNUSED.match(name):
            left_out.append(name)
        elif name in tensors:
            raise BundleInvalid(f"{path} has {name} twice, as {key} and under another name")
        else:
            tensors[name] = tensor
    if total > MAX_BYTES:
        raise BundleInvalid(f"{path} has tensors of {total:,} bytes; the limit is {MAX_BYTES:,}")
    return tensors, tuple(left_out)


def _without_prefix(tensors: Mapping[str, T]) -> tuple[dict[str, T], str]:
    """Tensors without the names of the modules around the network, and these names."""
    own = tuple(network_of(family).class_key for family in FAMILIES.values())
    tensors, prefix = dict(tensors), ""
    while tensors and not any(key in tensors for key in own):
        first = next(iter(tensors)).partition(".")[0]
        around = f"{first}."
        if not all(name.startswith(around) for name in tensors):
            break
        if first not in PREFIXES and not any(name.endswith(tuple(f".{key}" for key in own)) for name in tensors):
            break
        tensors, prefix = {name.removeprefix(around): one for name, one in tensors.items()}, prefix + around
    return tensors, prefix
