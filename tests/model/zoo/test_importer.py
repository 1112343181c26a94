from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from model.bundle import Bundle, read_bundle
from model.errors import BundleInvalid
from model.families.registry import FAMILIES
from model.net.network import build_network
from model.net.weights import DTYPES, DtypeName
from model.predictor import reference_answer
from model.types import Task
from model.zoo.catalogue import CATALOGUE
from model.zoo.importer import import_checkpoint
from tests.model.net.tiny import ARCHITECTURES, NUM_CLASSES, tiny_network
from tests.model.zoo.checkpoints import tiny_checkpoint

DEFAULT_LABELS = tuple(f"class {index}" for index in range(NUM_CLASSES))


def import_tensors(folder: Path, tensors: dict[str, Tensor], precision: DtypeName = "fp32") -> Bundle:
    torch.save(tensors, folder / "mine.pth")
    return import_checkpoint(folder / "mine.pth", folder / "store", "mine", precision=precision)


def published_tensors(name: str) -> dict[str, Tensor]:
    """A state dict of a published model's names and shapes; all weights are 0."""
    entry = CATALOGUE[name]
    tensors: dict[str, Tensor] = build_network(entry.architecture, len(entry.labels)).state_dict()
    return {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_a_checkpoint_of_ones_own_becomes_a_whole_bundle(tmp_path: Path, family: str) -> None:
    """From weights alone: architecture, the family's pipelines, default labels, where it is from, its own answer."""
    file = tiny_checkpoint(tmp_path, family)
    written = import_checkpoint(file, tmp_path / "store", "mine")
    bundle = read_bundle(tmp_path / "store" / "mine")
    assert bundle == written
    config = bundle.config
    entry = FAMILIES[family]
    assert (config.task, config.architecture, config.labels) == (entry.task, ARCHITECTURES[family], DEFAULT_LABELS)
    assert (config.preprocessing, config.postprocessing) == (entry.preprocessing, entry.postprocessing)
    assert "mine.pth (sha256 " in config.source.description
    assert config.accuracy is None
    assert config.reference == reference_answer(bundle)
    expected = tiny_network(family).state_dict()
    found = safetensors.torch.load_file(bundle.weights_path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_are_kept_in_the_precision_asked_for(tmp_path: Path, precision: DtypeName) -> None:
    """Half the size; the config says so."""
    bundle = import_checkpoint(tiny_checkpoint(tmp_path, "classifier"), tmp_path, "mine", precision=precision)
    found = safetensors.torch.load_file(bundle.weights_path)
    expected = tiny_network("classifier").state_dict()["head.weight"].to(DTYPES[precision])
    assert torch.equal(found["head.weight"], expected)
    assert bundle.config.precision == precision


def test_double_and_half_precision_are_read(tmp_path: Path) -> None:
    """Checkpoints come in any float type."""
    tensors = tiny_network("classifier").state_dict()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        converted = {key: one.to(dtype) if one.is_floating_point() else one for key, one in tensors.items()}
        found = safetensors.torch.load_file(import_tensors(tmp_path, converted).weights_path)
        assert torch.equal(found["head.weight"], tensors["head.weight"].to(dtype).float())


def test_tensors_that_share_memory_are_read(tmp_path: Path) -> None:
    """Slices of one storage, and one storage under two names, as some training scripts save them."""
    tensors = tiny_network("classifier").state_dict()
    both = torch.cat((tensors["norm.weight"], tensors["norm.bias"]))
    tensors["norm.weight"], tensors["norm.bias"] = both[:16], both[16:]
    tensors["stages.2.blocks.0.norm1.weight"] = tensors["norm.weight"]
    found = safetensors.torch.load_file(import_tensors(tmp_path, tensors).weights_path)
    assert torch.equal(found["norm.bias"], both[16:])
    assert torch.equal(found["stages.2.blocks.0.norm1.weight"], both[:16])


def test_labels_are_those_given_else_the_files_own(tmp_path: Path) -> None:
    """--labels wins over the toolbox's CLASSES, which win over `class 0`; names of the wrong number are no names."""
    tensors = tiny_network("classifier").state_dict()
    given, told = ("a", "b", "c", "d", "e"), ("v", "w", "x", "y", "z")
    torch.save({"state_dict": tensors, "meta": {"CLASSES": told}}, tmp_path / "mine.pth")
    assert import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine").config.labels == told
    assert import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine", labels=given).config.labels == given
    torch.save({"state_dict": tensors, "meta": {"CLASSES": told[:4]}}, tmp_path / "mine.pth")
    assert import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine").config.labels == DEFAULT_LABELS
    with pytest.raises(BundleInvalid, match=r"4 labels are given; .*mine\.pth has 5 classes"):
        import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine", labels=given[:4])


def test_the_task_is_checked_where_it_is_told(tmp_path: Path) -> None:
    """Who expects another model than the file holds is told before anything is written."""
    file = tiny_checkpoint(tmp_path, "mask_rcnn")
    with pytest.raises(BundleInvalid, match="has a mask_rcnn, which is for detect, not for classify"):
        import_checkpoint(file, tmp_path / "store", "mine", task=Task.CLASSIFY)
    assert not (tmp_path / "store").exists()
    assert import_checkpoint(file, tmp_path / "store", "mine", task=Task.DETECT).config.task == Task.DETECT


def test_a_published_name_brings_labels_pipelines_and_source(tmp_path: Path) -> None:
    """Of the model's name, or of the file's where the model is called otherwise."""
    torch.save(published_tensors("convmlp_s_cifar10"), tmp_path / "convmlp_s_cifar10.pth")
    torch.save(published_tensors("convmlp_s_cifar10"), tmp_path / "any.pth")
    entry = CATALOGUE["convmlp_s_cifar10"]
    for file, name in (("any.pth", "convmlp_s_cifar10"), ("convmlp_s_cifar10.pth", "planes_and_cats")):
        config = import_checkpoint(tmp_path / file, tmp_path / "store", name).config
        assert config.name == name
        assert (config.labels, config.preprocessing, config.postprocessing, config.source, config.accuracy) == (
            *(entry.labels, entry.preprocessing, entry.postprocessing),
            *(entry.source, entry.accuracy),
        )


def test_what_is_not_the_published_model_is_no_such_model(tmp_path: Path) -> None:
    """Its name is refused to another network and to other labels; a file of that name may be one's own."""
    file = tiny_checkpoint(tmp_path, "classifier", name="convmlp_s_imagenet.pth")
    with pytest.raises(BundleInvalid, match="has a classifier of size custom and 5 classes; the published model is"):
        import_checkpoint(file, tmp_path, "convmlp_s_imagenet")
    with pytest.raises(BundleInvalid, match="with labels of its own"):
        import_checkpoint(file, tmp_path, "convmlp_s_imagenet", labels=DEFAULT_LABELS)
    assert import_checkpoint(file, tmp_path, "mine").config.labels == DEFAULT_LABELS


def test_given_labels_make_a_file_of_a_published_name_ones_own(tmp_path: Path) -> None:
    """Who fine-tunes on ten other classes and keeps the file's name gets neither CIFAR's source nor its figures."""
    torch.save(published_tensors("convmlp_s_cifar10"), tmp_path / "convmlp_s_cifar10.pth")
    labels = [f"flower {index}" for index in range(10)]
    config = import_checkpoint(tmp_path / "convmlp_s_cifar10.pth", tmp_path, "mine", labels=labels).config
    assert (list(config.labels), config.accuracy) == (labels, None)
    assert "CIFAR" not in config.source.description


@pytest.mark.parametrize("name", ["", "../mine", "Mine", "a/b", ".hidden", "x" * 65, "a b"])
def test_a_name_that_no_model_can_have_is_refused(tmp_path: Path, name: str) -> None:
    """No name leads out of the store or clashes on file systems that fold cases."""
    with pytest.raises(BundleInvalid, match="is not a valid model name"):
        import_checkpoint(tiny_checkpoint(tmp_path, "classifier"), tmp_path / "store", name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pth"]


@pytest.mark.parametrize(
    ("value", "precision", "why"),
    [
        (float("nan"), "fp32", r"head\.bias has values that are not finite in fp32"),
        (float("inf"), "bf16", r"head\.bias has values that are not finite in bf16"),
        (1e5, "fp16", r"head\.bias has values that are not finite in fp16"),
        (3e38, "fp32", "gives scores that are not finite"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float, precision: DtypeName, why: str) -> None:
    """A diverged training, or values too large for the precision or for adding up, never become a bundle."""
    tensors = tiny_network("classifier").state_dict()
    tensors["head.bias"][2] = value
    if value == 3e38:
        tensors["head.weight"][2] = value
    with pytest.raises(BundleInvalid, match=why):
        import_tensors(tmp_path, tensors, precision)
    assert not list((tmp_path / "store").glob("*"))


def test_a_failed_import_leaves_the_old_model(tmp_path: Path) -> None:
    """Whole or not at all."""
    file = tiny_checkpoint(tmp_path, "classifier")
    before = import_checkpoint(file, tmp_path / "store", "mine")
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(BundleInvalid, match="truncated or corrupt"):
        import_checkpoint(file, tmp_path / "store", "mine")
    assert read_bundle(tmp_path / "store" / "mine") == before
