from __future__ import annotations

import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from model.errors import BundleInvalid
from model.zoo.checkpoint_file import read_checkpoint_file

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}


def is_same(content: object) -> bool:
    assert isinstance(content, Mapping)
    return content.keys() == TENSORS.keys() and all(torch.equal(content[name], TENSORS[name]) for name in TENSORS)


def torch_bytes(*, zipped: bool = True) -> bytes:
    content = io.BytesIO()
    torch.save(TENSORS, content, _use_new_zipfile_serialization=zipped)
    return content.getvalue()


def tar_of(path: Path, parts: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".pth.tar", ""])
@pytest.mark.parametrize(
    "content",
    [torch_bytes(), torch_bytes(zipped=False), safetensors.torch.save(TENSORS)],
    ids=["zip", "legacy", "safetensors"],
)
def test_the_content_decides_and_not_the_suffix(tmp_path: Path, content: bytes, suffix: str) -> None:
    """torch.load takes each file that ends in .safetensors for one; here every format is read under every name."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    found = read_checkpoint_file(path)
    assert is_same(found.content)
    assert found.path == path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_the_checkpoint_in_a_tar_archive_is_read(tmp_path: Path, zipped: bool) -> None:
    """Other files in the archive do not matter."""
    path = tar_of(tmp_path / "a.tar", {"run/log.txt": b"epoch 1", "run/best.pth": torch_bytes(zipped=zipped)})
    assert is_same(read_checkpoint_file(path).content)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("by_folder", [True, False], ids=["folder", "index"])
def test_shards_are_one_checkpoint(tmp_path: Path, kind: str, by_folder: bool) -> None:
    """Hugging Face's index lists the shards beside it; a folder is read by its index."""
    name = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    listed = {}
    for number, (key, tensor) in enumerate(TENSORS.items(), start=1):
        shard = f"{name.partition('.')[0]}-0000{number}-of-00002.{kind}"
        listed[key] = shard
        if kind == "safetensors":
            safetensors.torch.save_file({key: tensor}, tmp_path / shard)
        else:
            torch.save({key: tensor}, tmp_path / shard)
    index = tmp_path / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": listed}))
    assert is_same(read_checkpoint_file(tmp_path if by_folder else index).content)
    (tmp_path / listed["b"]).unlink()
    with pytest.raises(BundleInvalid, match=r"-00002-of-00002.* cannot be read: No such file"):
        read_checkpoint_file(index)


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ({"weight_map": {"a": "../a.bin"}}, "lists shards in other folders"),
        ({"weight_map": {}}, "lists 0 shards"),
        ({"weight_map": {"a": 3}}, "is JSON; expected a checkpoint, or the index of its shards"),
        ({"architecture": "convmlp_s"}, "is JSON; expected a checkpoint, or the index of its shards"),
        ({"weight_map": {str(at): f"{at}.bin" for at in range(65)}}, "lists 65 shards; expected 1 to 64"),
        ({"weight_map": {"a": "index.json"}}, "is not a checkpoint"),
        ({"weight_map": {"a": "one.bin", "c": "one.bin"}}, "lack 1 tensors that it lists, the first c"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, index: object, why: str) -> None:
    """Shards are files beside the index, in a bounded number, and have what it lists."""
    torch.save({"a": torch.ones(1)}, tmp_path / "one.bin")
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(BundleInvalid, match=why):
        read_checkpoint_file(tmp_path / "index.json")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\x1f\x8b\x08" + bytes(20), "is compressed with gzip; unpack it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
        (b"GGUF\x03\0\0\0" + bytes(40), r"is a GGUF file; give the PyTorch checkpoint"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.9.0" + bytes(40), r"is an ONNX model; give the PyTorch checkpoint"),
        (b"\x1c\0\0\0TFL3" + bytes(40), "is a TensorFlow Lite model"),
        (b"\x93NUMPY\x01\0" + bytes(40), "is an array of NumPy"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(40), r"is a picture \(JPEG\) and not a checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), r"is a picture \(PNG\) and not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a pointer of Git LFS.*git lfs pull"),
        (b"\n<html>", "is an HTML or XML page"),
        (b"{broken", "is not valid JSON"),
        ((9).to_bytes(8, "little") + b"{broken}}", "is a safetensors file, truncated or corrupt"),
    ],
    ids=["gzip", "hdf5", "gguf", "onnx", "tflite", "numpy", "jpeg", "png", "lfs", "html", "json", "broken safetensors"],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, why: str) -> None:
    """The error names what the file is, and what to do."""
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(BundleInvalid, match=why):
        read_checkpoint_file(tmp_path / "a.pth")


def test_archives_of_other_things_are_refused(tmp_path: Path) -> None:
    """A ZIP archive that is no checkpoint, a TorchScript program, tar archives with no checkpoint or two."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("run/best.pth", torch_bytes())
    with pytest.raises(BundleInvalid, match=r"is a ZIP archive of other files \(best\.pth\)"):
        read_checkpoint_file(tmp_path / "a.zip")
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    with pytest.raises(BundleInvalid, match=r"has arrays of NumPy \(\.npz\)"):
        read_checkpoint_file(tmp_path / "a.npz")
    with pytest.raises(BundleInvalid, match="is a tar archive with 0 checkpoints"):
        read_checkpoint_file(tar_of(tmp_path / "none.tar", {"a.txt": b"a"}))
    with pytest.raises(BundleInvalid, match=r"is a tar archive with 2 checkpoints \(a\.pth, b\.pth\)"):
        read_checkpoint_file(tar_of(tmp_path / "two.tar", {"a.pth": b"a", "b.pth": b"b"}))
    with pytest.raises(BundleInvalid, match=r"torch before 0\.1\.10"):
        read_checkpoint_file(tar_of(tmp_path / "old.tar", {"storages": b"", "tensors": b"", "pickle": b""}))
    with pytest.raises(BundleInvalid, match=r"one\.tar is not a checkpoint"):
        read_checkpoint_file(tar_of(tmp_path / "one.tar", {"a.pth": b"noise" * 200}))


def test_a_program_of_torch_is_named(tmp_path: Path) -> None:
    """Programs of torch.jit and torch.export may have deflated parts; the error has what saves the weights."""
    network = torch.nn.Linear(3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.script(network).save(tmp_path / "ts.pt")
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3),)), tmp_path / "a.pt2")
    with pytest.raises(BundleInvalid, match=r"is a TorchScript program, .*\(torch\.jit\.load\(PROGRAM\)\.state_dict"):
        read_checkpoint_file(tmp_path / "ts.pt")
    with pytest.raises(BundleInvalid, match=r"is a program of torch\.export; give the PyTorch checkpoint"):
        read_checkpoint_file(tmp_path / "a.pt2")


def test_a_folder_needs_one_checkpoint(tmp_path: Path) -> None:
    """The error lists the names; a sharded checkpoint of torch.distributed is named."""
    with pytest.raises(BundleInvalid, match=r"is a folder; expected a file, or a folder with model\.safetensors"):
        read_checkpoint_file(tmp_path)
    (tmp_path / ".metadata").touch()
    with pytest.raises(BundleInvalid, match=r"torch\.distributed in shards; consolidate it first"):
        read_checkpoint_file(tmp_path)
