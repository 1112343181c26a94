from __future__ import annotations

import argparse
import collections
import datetime
import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.errors import BundleInvalid
from model.zoo import unpickling
from model.zoo.unpickling import Placeholder, Unpickled, unpickle

CALLS: list[object] = []


def record(*arguments: object) -> object:
    """Code that a pickle may name; it must never be called."""
    CALLS.append(arguments)
    return arguments


class Recorded:
    """Unpickling it calls `record`."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return record, ("called",)


class Settings(dict[str, object]):
    """As the configuration classes of toolboxes: a dict with attributes."""


class Scores(list[float]):
    """As the histories of toolboxes."""


class Colour(enum.Enum):
    RED = 1


ZIPPED = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def saved(folder: Path, content: object, *, zipped: bool = True) -> Unpickled:
    path = folder / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return unpickle(path, mmap=zipped, name=path)


@ZIPPED
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, output=Path("out")),
        np.float64(0.87),
        np.arange(6).reshape(2, 3),
        Path("a/b"),
        datetime.datetime(2024, 5, 1, 12, 30),
        collections.defaultdict(list, a=[1]),
        collections.deque([1, 2], maxlen=3),
        collections.Counter("aab"),
        Settings(lr=0.1),
        Scores([0.5]),
        Colour.RED,
        slice(1, 2),
        b"bytes",
        {1, 2},
        1 + 2j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_trainers_store_beside_weights_does_not_matter(tmp_path: Path, beside: object, zipped: bool) -> None:
    """The tensors are read, whatever plain object lies beside them, also deep inside."""
    found = saved(tmp_path, {"state_dict": {"a": torch.arange(3)}, "meta": [{"x": beside}]}, zipped=zipped).content
    assert isinstance(found, dict)
    assert torch.equal(found["state_dict"]["a"], torch.arange(3))


@ZIPPED
def test_no_code_of_a_file_is_called(tmp_path: Path, zipped: bool) -> None:
    """A function that a pickle names and calls becomes a placeholder with the call's arguments."""
    found = saved(tmp_path, {"a": torch.ones(1), "b": Recorded()}, zipped=zipped)
    assert isinstance(found.content, dict)
    placeholder = found.content["b"]
    assert isinstance(placeholder, Placeholder)
    assert placeholder.arguments == ("called",)
    assert found.placeholders == (f"{__name__}.record",)
    assert CALLS == []


def test_attributes_of_an_object_can_be_read(tmp_path: Path) -> None:
    """A trainer's arguments, such as timm's, are values to look up."""
    found = saved(tmp_path, argparse.Namespace(crop_pct=0.9, mean=[0.5, 0.5, 0.5])).content
    assert isinstance(found, Placeholder)
    assert found.attributes == {"crop_pct": 0.9, "mean": [0.5, 0.5, 0.5]}
    assert not found.is_module


def test_containers_of_other_classes_keep_their_items(tmp_path: Path) -> None:
    """A subclass of dict or list, and a defaultdict, become plain ones."""
    content: dict[str, Any] = {"d": collections.defaultdict(list, a=[1]), "s": Settings(lr=0.1), "l": Scores([0.5])}
    assert saved(tmp_path, content).content == {"d": {"a": [1]}, "s": {"lr": 0.1}, "l": [0.5]}


def test_the_table_of_allowed_names_is_left_as_it_was(tmp_path: Path) -> None:
    """Placeholders are for one file: torch.load refuses the same names afterwards."""
    before = torch.serialization.get_safe_globals()
    saved(tmp_path, {"args": argparse.Namespace()})
    assert torch.serialization.get_safe_globals() == before


def test_the_number_of_names_is_bounded(tmp_path: Path) -> None:
    """A file that names more than `MAX_NAMES` classes is refused."""
    classes = [type(f"Class{index}", (), {}) for index in range(unpickling.MAX_NAMES + 1)]
    for one in classes:
        one.__module__ = __name__
        globals()[one.__name__] = one
    try:
        with pytest.raises(BundleInvalid, match="is not a checkpoint"):
            saved(tmp_path, [one() for one in classes])
    finally:
        for one in classes:
            del globals()[one.__name__]


def test_another_pickle_protocol_is_named(tmp_path: Path) -> None:
    """torch's reader takes protocol 2, torch.save's default."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1)}, path, pickle_protocol=4)
    with pytest.raises(BundleInvalid, match="default pickle protocol, 2"):
        unpickle(path, mmap=True, name=path)
