from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from model.bundle import CONFIG_FILE, WEIGHTS_FILE, Bundle, bundle_names, read_bundle
from model.errors import BundleInvalid
from model.net.network import build_network
from model.net.weights import load_weights, write_bundle
from model.reference import ClassifyReference, ReferenceAnswer, ScoredIndex
from tests.model.tiny_models import ARCHITECTURES, NUM_CLASSES, metadata, tiny_bundle, tiny_network

REFERENCE = ClassifyReference(labels=(ScoredIndex(index=3, score=0.5),))


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_what_is_written_is_read_back(tmp_path: Path, family: str) -> None:
    """The strict reader accepts a written bundle and returns every tensor unchanged."""
    written = tiny_bundle(tmp_path, family)
    read = read_bundle(tmp_path / "tiny")
    assert read == written
    network = build_network(ARCHITECTURES[family], NUM_CLASSES)
    load_weights(network, read)
    expected = tiny_network(family).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_reduced_precision_is_stored_and_loaded_as_float32(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    """The file has the dtype in the config; the network gets float32."""
    one = metadata("classifier", precision="fp16" if precision == "fp16" else "bf16")
    bundle = write_bundle(tmp_path, one, tiny_network("classifier"), lambda _: REFERENCE)
    assert safetensors.torch.load_file(bundle.weights_path)["head.weight"].dtype == dtype
    network = build_network(ARCHITECTURES["classifier"], NUM_CLASSES)
    load_weights(network, bundle)
    expected = tiny_network("classifier").state_dict()["head.weight"].to(dtype).float()
    assert torch.equal(network.state_dict()["head.weight"], expected)


def test_the_reference_comes_from_the_weights_as_written(tmp_path: Path) -> None:
    """The callback gets a loadable bundle with the final weights; its answer is stored."""
    seen: list[str] = []

    def answer(bundle: Bundle) -> ReferenceAnswer:
        load_weights(build_network(bundle.config.architecture, NUM_CLASSES), bundle)
        seen.append(bundle.config.weights_sha256)
        return REFERENCE

    write_bundle(tmp_path, metadata("classifier"), tiny_network("classifier"), answer)
    config = read_bundle(tmp_path / "tiny").config
    assert config.reference == REFERENCE
    assert seen == [config.weights_sha256]


def test_a_failed_write_leaves_the_old_bundle_and_no_debris(tmp_path: Path) -> None:
    """Writes are atomic: an error half way changes nothing in the store."""
    tiny_bundle(tmp_path, "classifier")
    before = read_bundle(tmp_path / "tiny")

    def answer(_: Bundle) -> ReferenceAnswer:
        raise RuntimeError("no reference picture")

    with pytest.raises(RuntimeError):
        write_bundle(tmp_path, metadata("classifier", precision="fp16"), tiny_network("classifier"), answer)
    assert read_bundle(tmp_path / "tiny") == before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_writing_again_replaces(tmp_path: Path) -> None:
    """A second bundle of a name replaces the first."""
    tiny_bundle(tmp_path, "classifier")
    write_bundle(tmp_path, metadata("classifier", precision="fp16"), tiny_network("classifier"), lambda _: REFERENCE)
    assert read_bundle(tmp_path / "tiny").config.precision == "fp16"
    assert "tiny" in bundle_names(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def drop_head(tensors: dict[str, Tensor]) -> None:
    del tensors["head.bias"]


def add_tensor(tensors: dict[str, Tensor]) -> None:
    tensors["tail.bias"] = torch.zeros(1)


def widen_head(tensors: dict[str, Tensor]) -> None:
    tensors["head.bias"] = torch.zeros(NUM_CLASSES + 1)


def make_integer(tensors: dict[str, Tensor]) -> None:
    tensors["head.bias"] = torch.zeros(NUM_CLASSES, dtype=torch.int64)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (drop_head, r"head\.bias is missing"),
        (add_tensor, r"tail\.bias is unexpected"),
        (widen_head, r"head\.bias is float \(6,\), expected float \(5,\)"),
        (make_integer, r"head\.bias is integer \(5,\), expected float \(5,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, damage: object, words: str) -> None:
    """A bundle of another architecture is refused; the error lists the keys."""
    bundle = tiny_bundle(tmp_path, "classifier")
    tensors = safetensors.torch.load_file(bundle.weights_path)
    assert callable(damage)
    damage(tensors)
    safetensors.torch.save_file(tensors, bundle.weights_path)
    with pytest.raises(BundleInvalid, match=words):
        load_weights(build_network(ARCHITECTURES["classifier"], NUM_CLASSES), bundle)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_an_unreadable_file_is_an_invalid_bundle(tmp_path: Path, content: bytes | None) -> None:
    """Truncated, foreign or missing weights are BundleInvalid."""
    bundle = tiny_bundle(tmp_path, "classifier")
    bundle.weights_path.unlink()
    if content is not None:
        bundle.weights_path.write_bytes(content)
    with pytest.raises(BundleInvalid, match=WEIGHTS_FILE):
        load_weights(build_network(ARCHITECTURES["classifier"], NUM_CLASSES), bundle)


def test_the_config_is_plain_json(tmp_path: Path) -> None:
    """People read and edit it: indented, with a final newline."""
    text = (tiny_bundle(tmp_path, "classifier").folder / CONFIG_FILE).read_text(encoding="utf-8")
    assert text.startswith('{\n  "format": 1')
    assert text.endswith("}\n")
