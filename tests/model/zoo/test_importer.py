from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from model.bundle import Bundle, file_sha256, read_bundle
from model.errors import BundleInvalid
from model.families.registry import FAMILIES
from model.net.network import build_network
from model.net.weights import DTYPES, DtypeName
from model.predictor import reference_answer
from model.spec import CenterCropSpec
from model.types import Task
from model.zoo.catalogue import CATALOGUE
from model.zoo.importer import import_checkpoint
from tests.model.tiny_models import ARCHITECTURES, NUM_CLASSES, tiny_checkpoint, tiny_network

DEFAULT_LABELS = tuple(f"class {index}" for index in range(NUM_CLASSES))


def import_tensors(folder: Path, tensors: dict[str, Tensor], precision: DtypeName = "fp32") -> Bundle:
    torch.save(tensors, folder / "mine.pth")
    return import_checkpoint(folder / "mine.pth", folder / "store", "mine", precision=precision)


def published_tensors(name: str) -> dict[str, Tensor]:
    """A state dict with a published model's names and shapes; all weights are 0."""
    entry = CATALOGUE[name]
    tensors: dict[str, Tensor] = build_network(entry.architecture, len(entry.labels)).state_dict()
    return {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_an_own_checkpoint_becomes_a_bundle(tmp_path: Path, family: str) -> None:
    """From weights alone: architecture, default pipelines and labels, source, reference answer."""
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
def test_weights_are_stored_in_the_given_precision(tmp_path: Path, precision: DtypeName) -> None:
    """Half the size; the config has the dtype."""
    bundle = import_checkpoint(tiny_checkpoint(tmp_path, "classifier"), tmp_path, "mine", precision=precision)
    found = safetensors.torch.load_file(bundle.weights_path)
    expected = tiny_network("classifier").state_dict()["head.weight"].to(DTYPES[precision])
    assert torch.equal(found["head.weight"], expected)
    assert bundle.config.precision == precision


def test_double_and_half_precision_are_read(tmp_path: Path) -> None:
    """Checkpoints may have any float dtype."""
    tensors = tiny_network("classifier").state_dict()
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        converted = {key: one.to(dtype) if one.is_floating_point() else one for key, one in tensors.items()}
        found = safetensors.torch.load_file(import_tensors(tmp_path, converted).weights_path)
        assert torch.equal(found["head.weight"], tensors["head.weight"].to(dtype).float())


def test_tensors_that_share_memory_are_read(tmp_path: Path) -> None:
    """Slices of one storage, and one storage under two names."""
    tensors = tiny_network("classifier").state_dict()
    both = torch.cat((tensors["norm.weight"], tensors["norm.bias"]))
    tensors["norm.weight"], tensors["norm.bias"] = both[:16], both[16:]
    tensors["stages.2.blocks.0.norm1.weight"] = tensors["norm.weight"]
    found = safetensors.torch.load_file(import_tensors(tmp_path, tensors).weights_path)
    assert torch.equal(found["norm.bias"], both[16:])
    assert torch.equal(found["stages.2.blocks.0.norm1.weight"], both[:16])


def test_labels_are_those_given_else_the_files_own(tmp_path: Path) -> None:
    """`labels` take precedence over the file's CLASSES, which precede `class 0`; a wrong number is an error."""
    tensors = tiny_network("classifier").state_dict()
    given, stored = ("a", "b", "c", "d", "e"), ("v", "w", "x", "y", "z")
    torch.save({"state_dict": tensors, "meta": {"CLASSES": stored}}, tmp_path / "mine.pth")
    assert import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine").config.labels == stored
    assert import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine", labels=given).config.labels == given
    torch.save({"state_dict": tensors, "meta": {"CLASSES": stored[:4]}}, tmp_path / "mine.pth")
    with pytest.raises(
        BundleInvalid, match=r"has 4 class names \(meta\.CLASSES in the file\) and 5 classes; give the right names"
    ):
        import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine")
    with pytest.raises(BundleInvalid, match=r"4 labels are given; .*mine\.pth has 5 classes"):
        import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine", labels=given[:4])


def test_the_task_is_checked_if_given(tmp_path: Path) -> None:
    """Another task than the network's is refused before anything is written."""
    file = tiny_checkpoint(tmp_path, "mask_rcnn")
    with pytest.raises(BundleInvalid, match="has a mask_rcnn, which is for detect, not for classify"):
        import_checkpoint(file, tmp_path / "store", "mine", task=Task.CLASSIFY)
    assert not (tmp_path / "store").exists()
    assert import_checkpoint(file, tmp_path / "store", "mine", task=Task.DETECT).config.task == Task.DETECT


def test_a_published_name_brings_labels_pipelines_and_source(tmp_path: Path) -> None:
    """With a published model's name the user states that the file is this model's."""
    torch.save(published_tensors("convmlp_s_cifar10"), tmp_path / "any.pth")
    entry = CATALOGUE["convmlp_s_cifar10"]
    notes: list[str] = []
    config = import_checkpoint(
        tmp_path / "any.pth", tmp_path / "store", "convmlp_s_cifar10", on_note=notes.append
    ).config
    assert (config.labels, config.preprocessing, config.postprocessing) == (
        *(entry.labels, entry.preprocessing, entry.postprocessing),
    )
    assert (config.source, config.accuracy) == (entry.source, entry.accuracy)
    assert sum("as published" in note for note in notes) == 2


def test_a_files_name_brings_labels_and_pipelines_alone(tmp_path: Path) -> None:
    """Fine-tuned weights may keep the file's name: the published accuracy, licence and source are not theirs."""
    file = tmp_path / "convmlp_s_cifar10.pth"
    torch.save(published_tensors("convmlp_s_cifar10"), file)
    entry = CATALOGUE["convmlp_s_cifar10"]
    notes: list[str] = []
    config = import_checkpoint(file, tmp_path / "store", "planes_and_cats", on_note=notes.append).config
    assert (config.name, config.labels) == ("planes_and_cats", entry.labels)
    assert (config.preprocessing, config.postprocessing) == (entry.preprocessing, entry.postprocessing)
    assert (config.accuracy, config.source.licence, config.source.url) == (None, "unknown", "")
    assert config.source.description == f"imported from {file.name} (sha256 {file_sha256(file)})"
    by_name = "of the published convmlp_s_cifar10, by the file's name"
    assert [by_name in note for note in notes[:2]] == [True, True]


def test_what_a_file_has_counts_more_than_its_name(tmp_path: Path) -> None:
    """Fine-tuned weights in a file with a published name keep their own names and pipeline, and the notes list both."""
    file = tmp_path / "convmlp_s_cifar10.pth"
    names = [f"flower {index}" for index in range(10)]
    args = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    torch.save({"state_dict": published_tensors(file.stem), "classes": names, "pretrained_cfg": args}, file)
    notes: list[str] = []
    config = import_checkpoint(file, tmp_path / "store", "flowers", on_note=notes.append).config
    assert list(config.labels) == names
    assert isinstance(config.preprocessing, CenterCropSpec)
    assert config.preprocessing.crop == 64
    assert "from pretrained_cfg in the file" in notes[0]
    assert "(classes in the file)" in notes[1]


def test_a_published_name_needs_the_published_network(tmp_path: Path) -> None:
    """Another network or other labels are refused; a file of that name may be one's own."""
    file = tiny_checkpoint(tmp_path, "classifier", name="convmlp_s_imagenet.pth")
    with pytest.raises(BundleInvalid, match="has a classifier on convmlp of size custom and 5 classes; the published"):
        import_checkpoint(file, tmp_path, "convmlp_s_imagenet")
    with pytest.raises(BundleInvalid, match="with labels of its own"):
        import_checkpoint(file, tmp_path, "convmlp_s_imagenet", labels=DEFAULT_LABELS)
    assert import_checkpoint(file, tmp_path, "mine").config.labels == DEFAULT_LABELS


def test_given_labels_make_an_own_model(tmp_path: Path) -> None:
    """With labels given, a file with a published name gets neither its source nor its accuracy."""
    torch.save(published_tensors("convmlp_s_cifar10"), tmp_path / "convmlp_s_cifar10.pth")
    labels = [f"flower {index}" for index in range(10)]
    config = import_checkpoint(tmp_path / "convmlp_s_cifar10.pth", tmp_path, "mine", labels=labels).config
    assert (list(config.labels), config.accuracy) == (labels, None)
    assert "CIFAR" not in config.source.description


@pytest.mark.parametrize("name", ["", "../mine", "Mine", "a/b", ".hidden", "x" * 65, "a b"])
def test_an_invalid_name_is_refused(tmp_path: Path, name: str) -> None:
    """No name escapes the store or clashes on case-insensitive file systems."""
    with pytest.raises(BundleInvalid, match="is not a valid model name"):
        import_checkpoint(tiny_checkpoint(tmp_path, "classifier"), tmp_path / "store", name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pth"]


@pytest.mark.parametrize(
    ("value", "precision", "why"),
    [
        (float("nan"), "fp32", r"head\.bias has NaN or infinity: .*earlier checkpoint"),
        (float("inf"), "bf16", r"head\.bias has NaN or infinity"),
        (1e5, "fp16", r"head\.bias has values that are too large for fp16; give --precision fp32 or bf16"),
        (3e38, "fp32", "gives an output that is not finite"),
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float, precision: DtypeName, why: str) -> None:
    """Diverged training, or values too large for the dtype or for sums, do not become a bundle."""
    tensors = tiny_network("classifier").state_dict()
    tensors["head.bias"][2] = value
    if value == 3e38:
        # Normalised features have a variance of 1, so some of them exceed what the sum can take.
        tensors["norm.weight"][:] = tensors["norm.bias"][:] = value
    with pytest.raises(BundleInvalid, match=why):
        import_tensors(tmp_path, tensors, precision)
    assert not list((tmp_path / "store").glob("*"))


def test_a_failed_import_leaves_the_old_model(tmp_path: Path) -> None:
    """The write is atomic."""
    file = tiny_checkpoint(tmp_path, "classifier")
    before = import_checkpoint(file, tmp_path / "store", "mine")
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(BundleInvalid, match="truncated or corrupt"):
        import_checkpoint(file, tmp_path / "store", "mine")
    assert read_bundle(tmp_path / "store" / "mine") == before
