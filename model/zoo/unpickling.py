"""Reads a file of torch.save without the code that it names.

A pickle names classes and functions, and reading it calls them. torch's weights-only reader calls only what rebuilds
tensors and containers, and refuses the rest. But trainers store more beside their weights: arguments, metrics,
dates. For each such name the reader gets a placeholder: an object without behaviour that keeps what it was built of.
Nothing is imported by name.
"""

from __future__ import annotations

import pickle
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch

from model.errors import BundleInvalid

MAX_NAMES = 200
"""Names that get a placeholder. A training script's file has some ten."""

IN_SHARDS = (
    "has the shards of a distributed training (DTensor); expected whole tensors. Consolidate them where you trained, "
    "such as with torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
)
"""What a file has whose tensors are distributed, after the file's name."""

_UNKNOWN_NAME = re.compile(r"GLOBAL ([\w.<>]+) was not an allowed global by default")
_BLOCKED_NAME = re.compile(r"GLOBAL ([\w.]+) whose module")
_NOT_A_DICT = re.compile(r"Can only SETITEMS? for .+ but got <class '([\w.<>]+)'>")
_NOT_A_LIST = re.compile(r"Can only (?:append to|extend) lists, but got <class '([\w.<>]+)'>")


class Placeholder:
    """An object whose class is not loaded: what it was built of, and no behaviour."""

    __slots__ = ("arguments", "state")
    name: ClassVar[str]
    """Of the class or function, with its module."""

    arguments: tuple[object, ...]
    state: object

    def __new__(cls, *arguments: object) -> Self:
        self = super().__new__(cls)
        self.arguments = arguments
        self.state = None
        return self

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    @property
    def attributes(self) -> Mapping[object, object]:
        """The object's `__dict__`; empty if it has none."""
        state = self.state[0] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state
        return state if isinstance(state, Mapping) else {}

    @property
    def is_module(self) -> bool:
        """Whether it was a `torch.nn.Module`."""
        return {"_parameters", "_modules"} <= self.attributes.keys()


_Kind = Callable[[], object] | None
"""What stands for an object: an empty container that is filled, or a placeholder (None)."""
_KINDS: dict[str, _Kind] = {"collections.defaultdict": OrderedDict, "collections.deque": list}


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a file contains, and the sorted names that became placeholders."""

    content: object
    placeholders: tuple[str, ...]


_safe_globals = threading.Lock()
"""torch's table of allowed names is the process's."""


def unpickle(path: Path, *, mmap: bool, name: Path) -> Unpickled:
    """Read a file of torch.save: tensors on the CPU, containers, plain values and placeholders.

    Args:
        path: in torch's ZIP format or its legacy one.
        mmap: map the tensors instead of reading them; ZIP format only.
        name: of the file in errors.

    Raises:
        BundleInvalid: the file is truncated, corrupt, of another kind, or names what is refused even as a placeholder.
    """
    kinds: dict[str, _Kind] = {}
    while True:
        stand_ins: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
            (_stand_in(known, kind), known) for known, kind in kinds.items()
        ]
        try:
            with _safe_globals, torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the file's age; nothing that its reader can change
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
            return Unpickled(content, tuple(sorted(kinds)))
        except pickle.UnpicklingError as error:
            _learn(name, kinds, error)
        except Exception as error:  # arbitrary bytes raise arbitrary exceptions in the unpickler
            reason = str(error).partition("\n")[0].partition(". ")[0]
            raise BundleInvalid(
                f"{name} is not a checkpoint as torch.save writes it, truncated or corrupt ({type(error).__name__}: "
                f"{reason[:200]}); copy or download it again, or save it with torch.save(model.state_dict(), FILE)"
            ) from error


def _stand_in(name: str, kind: _Kind) -> type:
    """A class of its own for each name. torch fills only a plain dict or list, so some make one instead."""
    if kind is None:
        return type(name, (Placeholder,), {"__slots__": (), "name": name, "__module__": __name__})
    return type(name, (), {"__new__": lambda _, *__: kind()})


def _learn(file: Path, kinds: dict[str, _Kind], error: pickle.UnpicklingError) -> None:
    """Add the name that the reader stopped at, or what kind of container it is.

    Raises:
        BundleInvalid: the reader stopped for another reason, or once more at the same name.
    """
    message = str(error)
    if (found := _UNKNOWN_NAME.search(message)) is not None:
        # torch leaves out the module of builtins.
        name = found[1] if "." in found[1] else f"builtins.{found[1]}"
        if name not in kinds and len(kinds) < MAX_NAMES:
            kinds[name] = _KINDS.get(name)
            return
    for pattern, container in ((_NOT_A_DICT, OrderedDict), (_NOT_A_LIST, list)):
        if (found := pattern.search(message)) is not None:
            name = found[1].removeprefix(f"{__name__}.")
            if name in kinds and kinds[name] is None:
                kinds[name] = container
                return
    raise BundleInvalid(f"{file} {_refusal(message)}") from error


def _refusal(message: str) -> str:
    """Why torch's reader refused a file, after the file's name."""
    save_again = "load it where you trained and save its state dict alone: torch.save(model.state_dict(), FILE)"
    if (blocked := _BLOCKED_NAME.search(message)) is not None:
        return f"needs {blocked[1]} to load, which is never read. If you trust the file, {save_again}"
    if "Only persistent_load of storage" in message:  # the legacy format stores a module's source
        return f"has a pickled module, whose code is not run; {save_again}"
    if "torch.distributed" in message:
        return IN_SHARDS
    return (
        "is not a checkpoint as torch.save writes it with its default pickle protocol, 2, or is corrupt. If it is "
        f"whole, {save_again}"
    )
