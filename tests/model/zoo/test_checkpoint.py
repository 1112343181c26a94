from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from model.errors import BundleInvalid
from model.net.weights import DtypeName, write_bundle
from model.types import Task
from model.zoo import checkpoint
from model.zoo.checkpoint import export_checkpoint, read_checkpoint
from model.zoo.importer import import_checkpoint
from tests.model.tiny_models import ARCHITECTURES, REFERENCES, metadata, tiny_bundle, tiny_checkpoint, tiny_network

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(7)}


class Harmful:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def same(found: dict[str, Tensor]) -> bool:
    return list(found) == list(TENSORS) and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    "document",
    [
        TENSORS,
        OrderedDict(TENSORS),
        {"state_dict": TENSORS, "meta": {"epoch": 12, "CLASSES": ("cat", "dog")}, "optimizer": {"state": {}}},
        {"model": TENSORS, "epoch": 3},
        {f"module.{name}": tensor for name, tensor in TENSORS.items()},
        {"state_dict": {f"module.{name}": tensor for name, tensor in TENSORS.items()}},
        {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in TENSORS.items()},
    ],
    ids=["bare", "ordered", "mmcv", "model", "parallel", "parallel in a wrapper", "parameters"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_usual_wrapping_is_read(tmp_path: Path, document: object, zipped: bool) -> None:
    """Bare, wrapped, DataParallel's, and torch's legacy format give the same tensors under the same names."""
    torch.save(document, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(tmp_path / "a.pth").tensors)


@pytest.mark.parametrize(
    ("meta", "labels"),
    [
        ({"CLASSES": ("cat", "dog")}, ("cat", "dog")),
        ({"CLASSES": ["cat", "dog"]}, ("cat", "dog")),
        ({"CLASSES": None}, None),
        ({"CLASSES": ()}, None),
        ({"CLASSES": "catdog"}, None),
        ({"CLASSES": ("cat", 3)}, None),
        ({"CLASSES": ("cat", " ")}, None),
        ({}, None),
        ("none", None),
    ],
)
def test_valid_class_names_are_read(tmp_path: Path, meta: object, labels: tuple[str, ...] | None) -> None:
    """mmcv's CLASSES are labels if each is a name; anything else is ignored."""
    torch.save({"state_dict": TENSORS, "meta": meta}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").labels == labels


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    """The error names the code, which is never run, also deep inside a valid document."""
    made = tmp_path / "made"
    document = {"state_dict": TENSORS, "meta": {"hook_msgs": [Harmful(made)]}}
    torch.save(document, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BundleInvalid, match=r"needs posix\.mkdir to load; only plain tensors are read"):
        read_checkpoint(tmp_path / "a.pth")
    assert not made.exists()


def test_a_harmless_object_is_refused_as_well(tmp_path: Path) -> None:
    """A training script's argparse.Namespace is refused too; the message names the remedy."""
    torch.save({"state_dict": TENSORS, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    with pytest.raises(BundleInvalid, match=r"needs argparse\.Namespace to load.*save its state dict alone"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    """`torch.save(model)` stores code by name."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(BundleInvalid, match=r"needs torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><title>404</title>", "is not a checkpoint as torch.save writes it"),
        (b"PK\x03\x04 and no more", "is truncated or corrupt"),
        (b"\x80", "is not a checkpoint"),
        (pickle.dumps({"a": 1}, protocol=4), "is not a checkpoint"),
        (bytes(range(255, -1, -1)) * 20, "is not a checkpoint"),
    ],
    ids=["empty", "html", "broken zip", "one byte", "other pickle", "noise"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, why: str) -> None:
    """Bytes that are no checkpoint are BundleInvalid with a reason."""
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(BundleInvalid, match=why):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, share: float, zipped: bool) -> None:
    """A checkpoint truncated anywhere is refused."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(BundleInvalid, match=r"truncated or corrupt|is not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({}, "has no state dict"),
        ([torch.ones(1)], "has no state dict"),
        ({"epoch": 3, "weights": {"a": torch.ones(1)}}, "has no state dict"),
        ({"state_dict": {}}, "has 0 tensors"),
        ({"state_dict": {"a": torch.ones(1), "b": 3}}, "'b' in its state dict is not a named tensor"),
        ({"state_dict": {3: torch.ones(1)}}, "'3' in its state dict is not a named tensor"),
        ({"a": torch.eye(3).to_sparse()}, "a is sparse"),
        ({"a": torch.ones(3, device="meta")}, "a is sparse, quantized or without values"),
        ({"a": torch.ones(1).expand(10**10)}, "has tensors of 40,000,000,000 bytes"),
        ({f"a{index}": torch.ones(1) for index in range(checkpoint.MAX_TENSORS + 1)}, "has 10,001 tensors"),
    ],
    ids=["nothing", "list", "other", "no tensors", "value", "number", "sparse", "meta", "expanded", "many"],
)
def test_a_document_without_valid_tensors_is_refused(tmp_path: Path, document: object, why: str) -> None:
    """Tensors must be named, dense and within limits; the error names what is not."""
    torch.save(document, tmp_path / "a.pth")
    with pytest.raises(BundleInvalid, match=why):
        read_checkpoint(tmp_path / "a.pth")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    """A small archive that would expand to gigabytes is not unpacked."""
    torch.save(TENSORS, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as squeezed,
    ):
        for name in plain.namelist():
            squeezed.writestr(name, plain.read(name))
    with pytest.raises(BundleInvalid, match="has compressed parts"):
        read_checkpoint(tmp_path / "a.pth")


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    """The size is checked before the content is read."""
    with (tmp_path / "a.pth").open("wb") as file:
        file.truncate(checkpoint.MAX_BYTES + 1)
    with pytest.raises(BundleInvalid, match=r"has 2,147,483,649 bytes; the limit is 2,147,483,648"):
        read_checkpoint(tmp_path / "a.pth")


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    """Missing, or a folder: the system's message."""
    with pytest.raises(BundleInvalid, match="cannot be read: No such file"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(BundleInvalid, match="cannot be read: Is a directory"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_the_round_trip_is_exact(tmp_path: Path, family: str) -> None:
    """Checkpoint → bundle → checkpoint keeps every tensor, bit for bit, and its name."""
    file = tiny_checkpoint(tmp_path, family)
    bundle = import_checkpoint(file, tmp_path, "mine", labels=["a", "b", "c", "d", "e"])
    export_checkpoint(bundle, tmp_path / "out.pth")
    before, after = read_checkpoint(file).tensors, read_checkpoint(tmp_path / "out.pth").tensors
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) and after[key].dtype == before[key].dtype for key in before)
    again = import_checkpoint(tmp_path / "out.pth", tmp_path, "again")
    assert again.config.weights_sha256 == bundle.config.weights_sha256
    if family != "classifier":
        assert again.config.labels == bundle.config.labels


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_dtype_is_kept(tmp_path: Path, precision: DtypeName) -> None:
    """Half-precision weights are exported in half precision."""
    one = metadata("classifier", precision=precision)
    bundle = write_bundle(tmp_path, one, tiny_network("classifier"), lambda _: REFERENCES[Task.CLASSIFY])
    export_checkpoint(bundle, tmp_path / "out.pth")
    found = read_checkpoint(tmp_path / "out.pth").tensors
    expected = safetensors.torch.load_file(bundle.weights_path)
    assert found.keys() == expected.keys()
    assert all(found[key].dtype == expected[key].dtype for key in expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_wrapping_is_the_toolboxes(tmp_path: Path) -> None:
    """A classifier's state dict is bare; a detector's has mmcv's wrapping, with the class names in `meta`."""
    export_checkpoint(tiny_bundle(tmp_path, "classifier"), tmp_path / "bare.pth")
    bare = torch.load(tmp_path / "bare.pth", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in bare.values())
    export_checkpoint(tiny_bundle(tmp_path, "retinanet"), tmp_path / "wrapped.pth")
    wrapped = torch.load(tmp_path / "wrapped.pth", weights_only=True)
    assert wrapped["meta"]["CLASSES"] == tuple(f"class {index}" for index in range(5))
    assert "bbox_head.retina_cls.weight" in wrapped["state_dict"]


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    """The write is atomic: damaged weights leave the existing file unchanged."""
    bundle = tiny_bundle(tmp_path / "store", "classifier")
    (tmp_path / "out.pth").write_bytes(b"precious")
    bundle.weights_path.write_bytes(b"damaged")
    with pytest.raises(BundleInvalid, match="cannot read"):
        export_checkpoint(bundle, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "store"]


def test_a_missing_folder_is_the_systems_error(tmp_path: Path) -> None:
    """The error is FileNotFoundError."""
    with pytest.raises(FileNotFoundError):
        export_checkpoint(tiny_bundle(tmp_path, "classifier"), tmp_path / "nowhere" / "out.pth")
