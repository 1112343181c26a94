from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from model.errors import BundleInvalid
from model.net.weights import Precision, write_bundle
from model.types import Task
from model.zoo.checkpoint import read_checkpoint
from model.zoo.exporter import export_checkpoint
from model.zoo.importer import import_checkpoint
from tests.model.net.tiny import ARCHITECTURES, REFERENCES, draft, tiny_bundle, tiny_network
from tests.model.zoo.checkpoints import tiny_checkpoint


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_the_round_trip_is_exact(tmp_path: Path, family: str) -> None:
    """Checkpoint → bundle → checkpoint gives every tensor back, bit for bit, under its name; and once more."""
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
def test_the_dtype_is_kept(tmp_path: Path, precision: Precision) -> None:
    """What the bundle holds in half precision is not blown up."""
    one = draft("classifier", precision=precision)
    bundle = write_bundle(tmp_path, one, tiny_network("classifier"), lambda _: REFERENCES[Task.CLASSIFY])
    export_checkpoint(bundle, tmp_path / "out.pth")
    found = read_checkpoint(tmp_path / "out.pth").tensors
    expected = safetensors.torch.load_file(bundle.weights_path)
    assert found.keys() == expected.keys()
    assert all(found[key].dtype == expected[key].dtype for key in expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_wrapping_is_the_toolboxes(tmp_path: Path) -> None:
    """A classifier's state dict is bare; mmcv finds a detector's under its key, with the class names in `meta`."""
    export_checkpoint(tiny_bundle(tmp_path, "classifier"), tmp_path / "bare.pth")
    bare = torch.load(tmp_path / "bare.pth", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in bare.values())
    export_checkpoint(tiny_bundle(tmp_path, "retinanet"), tmp_path / "wrapped.pth")
    wrapped = torch.load(tmp_path / "wrapped.pth", weights_only=True)
    assert wrapped["meta"]["CLASSES"] == tuple(f"class {index}" for index in range(5))
    assert "bbox_head.retina_cls.weight" in wrapped["state_dict"]


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    """Whole or not at all: damaged weights cost neither the file that was there nor leave half of one."""
    bundle = tiny_bundle(tmp_path / "store", "classifier")
    (tmp_path / "out.pth").write_bytes(b"precious")
    bundle.weights_path.write_bytes(b"damaged")
    with pytest.raises(BundleInvalid, match="cannot read"):
        export_checkpoint(bundle, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pth", "store"]


def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    """The caller is told by the system what is missing."""
    with pytest.raises(FileNotFoundError):
        export_checkpoint(tiny_bundle(tmp_path, "classifier"), tmp_path / "nowhere" / "out.pth")
