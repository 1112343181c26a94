from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from model.errors import BundleInvalid
from model.net.weights import DtypeName, write_bundle
from model.types import Task
from model.zoo import checkpoint, checkpoint_file
from model.zoo.checkpoint import read_checkpoint
from model.zoo.export import export_checkpoint
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
        {"model_state_dict": TENSORS, "loss": 0.3},
        {"step": 9, "mine": TENSORS},
        {"model": {"state_dict": TENSORS}},
        {f"module.{name}": tensor for name, tensor in TENSORS.items()},
        {"state_dict": {f"module.{name}": tensor for name, tensor in TENSORS.items()}},
        {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in TENSORS.items()},
    ],
    ids=[
        "bare",
        "ordered",
        "mmcv",
        "model",
        "tutorial",
        "any",
        "nested",
        "parallel",
        "parallel in a wrapper",
        "parameters",
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_usual_wrapping_is_read(tmp_path: Path, document: object, zipped: bool) -> None:
    """Bare, wrapped, DataParallel's, and torch's legacy format give the same tensors under the same names."""
    torch.save(document, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(tmp_path / "a.pth").tensors)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    """The error names the code, which is never run, also deep inside a valid document."""
    made = tmp_path / "made"
    document = {"state_dict": TENSORS, "meta": {"hook_msgs": [Harmful(made)]}}
    torch.save(document, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BundleInvalid, match=r"needs posix\.mkdir to load, which is never read"):
        read_checkpoint(tmp_path / "a.pth")
    assert not made.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda module: module, lambda module: {"epoch": 3, "model": module}])
def test_a_pickled_module_is_refused(tmp_path: Path, zipped: bool, wrap: Callable[[object], object]) -> None:
    """`torch.save(model)` stores code by name; the error has the remedy."""
    torch.save(wrap(torch.nn.Linear(2, 2)), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        BundleInvalid, match=r"a pickled module.*, whose code is not run.*torch\.save\(model\.state_dict"
    ):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty; copy or download it again"),
        (b"<!DOCTYPE html><title>404</title>", "is an HTML or XML page"),
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
        ([torch.ones(1)], "has a list; expected tensors by name"),
        ({"epoch": 3, "steps": [torch.ones(1)]}, "has no state dict; it has epoch, steps"),
        ({"one": {"a": torch.ones(1)}, "two": {"a": torch.ones(1)}}, r"has several state dicts \(one, two\)"),
        ({"state_dict": {}}, "has 0 tensors"),
        ({"state_dict": {"a": torch.ones(1), "b": 3}}, "'b' in its state dict is not a named tensor"),
        ({"state_dict": {3: torch.ones(1)}}, "'3' in its state dict is not a named tensor"),
        ({"a": torch.eye(3).to_sparse()}, "a is sparse"),
        ({"a": torch.ones(3, device="meta")}, "a is sparse, quantized or without values"),
        ({"a": torch.ones(1).expand(10**10)}, "has tensors of 40,000,000,000 bytes"),
        ({f"a{index}": torch.ones(1) for index in range(checkpoint.MAX_TENSORS + 1)}, "has 10,001 tensors"),
    ],
    ids=["nothing", "list", "other", "two", "no tensors", "value", "number", "sparse", "meta", "expanded", "many"],
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
    with pytest.raises(BundleInvalid, match="parts were compressed"):
        read_checkpoint(tmp_path / "a.pth")


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    """The size is checked before the content is read."""
    with (tmp_path / "a.pth").open("wb") as file:
        file.truncate(checkpoint_file.MAX_BYTES + 1)
    with pytest.raises(BundleInvalid, match=r"has 2,147,483,649 bytes; the limit is 2,147,483,648"):
        read_checkpoint(tmp_path / "a.pth")


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    """Missing, or a folder: the system's message."""
    with pytest.raises(BundleInvalid, match="cannot be read: No such file"):
        read_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(BundleInvalid, match="is a folder; expected a file"):
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


ONES = {name: torch.ones_like(tensor) for name, tensor in TENSORS.items()}
"""The averages of `TENSORS`."""


def buffers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As mmcv's EMAHook registers them."""
    return {"ema_" + name.replace(".", "_"): tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


MMENGINE = {"mmengine_version": "0.10.7", "experiment_name": "a"}


@pytest.mark.parametrize(
    "document",
    [
        {"state_dict": TENSORS, "state_dict_ema": ONES, "arch": "convmlp_s"},
        {"model": TENSORS, "model_ema": ONES},
        {"params": TENSORS, "params_ema": ONES},
        {"model": TENSORS, "ema": {"module": ONES, "updates": 7}},
        # mmengine exchanges the two when it saves, so that its tests load the average.
        {
            "meta": MMENGINE,
            "state_dict": ONES,
            "ema_state_dict": {"steps": torch.tensor(9), **below("module", TENSORS)},
        },
        {"state_dict": ONES, "current_model_state": TENSORS, "averaging_state": {"n_averaged": torch.tensor(9)}},
        {"state_dict": {**below("model", TENSORS), **below("ema_model.module", ONES)}},
    ],
    ids=["timm", "deit", "basicsr", "nested", "mmengine", "lightning", "submodule"],
)
def test_averaged_weights_are_taken_unless_the_raw_ones_are_asked_for(tmp_path: Path, document: object) -> None:
    """As timm does; the notes name the keys of both."""
    torch.save(document, tmp_path / "a.pth")
    for weights, expected in ((None, ONES), ("ema", ONES), ("raw", TENSORS)):
        found = read_checkpoint(tmp_path / "a.pth", weights)  # type: ignore[arg-type]
        assert found.tensors.keys() == TENSORS.keys()
        assert all(torch.equal(found.tensors[name], expected[name]) for name in TENSORS)
        assert ("averaged (EMA)" in found.weights) == (weights != "raw")


def test_weights_that_the_file_lacks_are_an_error(tmp_path: Path) -> None:
    """Asking for the other weights is never answered with these."""
    torch.save({"model": TENSORS}, tmp_path / "raw.pth")
    torch.save({"model_ema": TENSORS}, tmp_path / "average.pth")
    with pytest.raises(BundleInvalid, match="has no averaged weights; expected one of state_dict_ema"):
        read_checkpoint(tmp_path / "raw.pth", "ema")
    with pytest.raises(BundleInvalid, match=r"has only averaged weights \(model_ema\)"):
        read_checkpoint(tmp_path / "average.pth", "raw")
    assert same(read_checkpoint(tmp_path / "average.pth").tensors)


NETWORK = {"tokenizer.block.0.weight": torch.ones(1), "head.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    ("prefix", "removed"),
    [
        ("module.", "module."),
        ("_orig_mod.", ""),
        ("module._orig_mod.", "module."),
        ("_orig_mod.module.", "module."),
        ("model.", "model."),
        ("model.module.backbone.", "model.module.backbone."),
        ("_fsdp_wrapped_module._checkpoint_wrapped_module.", ""),
        ("my_classifier.net.", "my_classifier.net."),
    ],
)
def test_the_modules_around_a_network_are_removed(tmp_path: Path, prefix: str, removed: str) -> None:
    """Prefixes of all names, of wrappers and of a trainer's own module; and what torch.compile adds anywhere."""
    torch.save({prefix + name: tensor for name, tensor in NETWORK.items()}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.tensors.keys() == NETWORK.keys()
    assert found.prefix == removed


def test_wrappers_below_other_modules_are_removed(tmp_path: Path) -> None:
    """A compiled backbone within a detector."""
    torch.save({"neck.a": torch.ones(1), "backbone._orig_mod.b": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth").tensors) == ["neck.a", "backbone.b"]
    torch.save({"backbone.b": torch.ones(1), "backbone._orig_mod.b": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(BundleInvalid, match=r"has backbone\.b twice"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_prefix_that_only_some_names_have_is_kept(tmp_path: Path) -> None:
    """`backbone.` belongs to a detector's own names."""
    torch.save({"backbone.a": torch.ones(1), "neck.b": torch.ones(1)}, tmp_path / "a.pth")
    assert list(read_checkpoint(tmp_path / "a.pth").tensors) == ["backbone.a", "neck.b"]


@pytest.mark.parametrize(
    "unused",
    [
        buffers(TENSORS),
        {"auxiliary_head.conv_seg.weight": torch.ones(1)},
        {"n_averaged": torch.tensor(3)},
        {"criterion.weight": torch.ones(3), "train_accuracy.correct": torch.tensor(3)},
        {"total_ops": torch.ones(1), "stages.0.total_params": torch.ones(1)},
    ],
    ids=["mmcv's averages", "auxiliary head", "SWA", "loss and metrics", "thop"],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_tensors_of_the_training_are_left_out(tmp_path: Path, unused: dict[str, Tensor], prefix: str) -> None:
    """Beside the network, whether it has a prefix or not; they are listed."""
    tensors = {prefix + name: tensor for name, tensor in TENSORS.items()}
    torch.save({"state_dict": {**tensors, **unused}}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert same(found.tensors)
    assert set(found.left_out) == set(unused)


def test_a_missing_count_of_batches_is_zero(tmp_path: Path) -> None:
    """Batch norms of old or converted checkpoints have none."""
    torch.save({"bn.weight": torch.ones(2), "bn.running_mean": torch.ones(2)}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").tensors["bn.num_batches_tracked"] == 0


def compiled(network: nn.Module) -> nn.Module:
    found = torch.compile(network)
    assert isinstance(found, nn.Module)
    return found


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        compiled,
        checkpoint_wrapper,
        lambda network: nn.DataParallel(compiled(network)),
        lambda network: nn.ModuleDict({"model": compiled(network), "criterion": nn.BCELoss()}),
    ],
    ids=["DataParallel", "SWA", "compile", "checkpointing", "mixture", "a module of one's own"],
)
def test_torchs_own_wrappers_are_removed(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """The state dicts of a wrapped network have its own names and values again."""
    network = tiny_network("classifier")
    torch.save({"epoch": 1, "model_state_dict": wrap(network).state_dict()}, tmp_path / "a.pth")
    found, expected = read_checkpoint(tmp_path / "a.pth").tensors, network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
