"""Every backbone in every way that networks run: precisions, batches, forms; and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from model.bundle import CONFIG_FILE, BundleConfig, read_bundle
from model.errors import BundleInvalid
from model.families.classifier import ClassifierSpec
from model.families.hire_mlp import HIRE_MLP_SIZES
from model.families.registry import preprocessing_of
from model.families.repmlpnet import RepMLPNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.net.network import build_network
from model.net.semantic_fpn import SemanticFPN
from model.precision import Precision, candidates, make_predictor
from model.predictor import MAX_FORM_DIFFERENCE, load_deployed, load_network
from model.reference import REFERENCE_PARAMS, reference_input
from model.spec import KeepRatioSpec
from model.types import AS_TRAINED, Batch, ClassifyOutput, EmbedOutput, ModelInput
from model.zoo.checkpoint import read_checkpoint
from model.zoo.export import export_checkpoint
from model.zoo.importer import import_checkpoint
from tests.model.test_batch_independence import EQUAL
from tests.model.tiny_backbones import BACKBONES, CLASSES, tiny_backbone_bundle, tiny_classifier

CPU = torch.device("cpu")
PRECISIONS = [Precision.EXACT, *candidates(CPU)]
TOLERANCES = {Precision.EXACT: 1e-6, Precision.FP32: 1e-5, Precision.FP16: 0.05, Precision.BF16: 0.05}
BATCH_DIFFERENCE = 0.0 if EQUAL else 1e-5
"""Of scores, alone and in a batch: docs/precision.md."""
TINY_PARTITIONS = 1e-6
"""The same for RepMLPNet with partitions of 2x2 positions, which no published size has: torch multiplies matrices of
fewer than 400 products in another order."""

pytestmark = pytest.mark.usefixtures("one_thread")


def batch_of(picture: ModelInput, rows: int) -> Batch:
    """The picture in the last row, moved copies of it before."""
    pixels = [np.roll(picture.pixels, 3 * (rows - 1 - row), axis=1) for row in range(rows)]
    return Batch(np.stack(pixels), (picture.geometry,) * rows, (REFERENCE_PARAMS,) * rows)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_a_checkpoint_is_recognised_with_its_numbers_and_pipeline(backbone: str, tmp_path: Path) -> None:
    """Shapes alone give the architecture; the pipeline is that of the backbone's authors at its input size."""
    config = tiny_backbone_bundle(tmp_path, backbone).config
    assert config.architecture == ClassifierSpec(backbone=BACKBONES[backbone])
    assert config.preprocessing == preprocessing_of(config.architecture)
    assert BundleConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_precisions_agree_and_batches_do_not_matter(backbone: str, precision: Precision, tmp_path: Path) -> None:
    """Folded, channels-last and by oneDNN the scores are those of the plain network; alone and in any batch."""
    bundle = tiny_backbone_bundle(tmp_path, backbone)
    picture = reference_input(bundle.config.preprocessing)
    plain = torch.softmax(logits(backbone, picture), 0).numpy()
    predictor = make_predictor(bundle, CPU, precision, load_network(bundle))
    for rows in (1, 2, 3, 8, 32):
        output = predictor.predict(batch_of(picture, rows))[-1]
        assert isinstance(output, ClassifyOutput)
        scores = np.empty(CLASSES)
        scores[output.indices] = output.scores
        assert np.abs(scores - plain).max() < TOLERANCES[precision]
        if rows == 1:
            alone = scores
        bound = max(BATCH_DIFFERENCE, TINY_PARTITIONS) if backbone == "repmlpnet" else BATCH_DIFFERENCE
        assert np.abs(scores - alone).max() <= bound


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_an_embedding_is_the_input_of_the_last_layer(backbone: str, precision: Precision, tmp_path: Path) -> None:
    """In every precision and form, alone and in a batch that also has rows of labels, which it does not change."""
    bundle = tiny_backbone_bundle(tmp_path, backbone)
    picture = reference_input(bundle.config.preprocessing)
    network = tiny_classifier(backbone).double()
    features = plain_features(network, backbone, picture)
    predictor = make_predictor(bundle, CPU, precision, load_network(bundle))
    alone = None
    for rows in (1, 2, 8):
        batch = batch_of(picture, rows)
        params = (*batch.params[:-1], msgspec.structs.replace(REFERENCE_PARAMS, embed=True))
        *labels, last = predictor.predict(dataclasses.replace(batch, params=params))
        assert isinstance(last, EmbedOutput)
        assert last.embedding.dtype == np.float32
        assert last.embedding.shape == (bundle.config.embedding_dimension,)
        assert np.abs(last.embedding - features).max() <= 20 * TOLERANCES[precision] * np.abs(features).max()
        alone = last.embedding if alone is None else alone
        assert np.abs(last.embedding - alone).max() < 1e-4
        for one, other in zip(labels, predictor.predict(batch), strict=False):
            assert isinstance(one, ClassifyOutput)
            assert isinstance(other, ClassifyOutput)
            assert np.array_equal(one.indices, other.indices)
            assert np.array_equal(one.scores, other.scores)


@torch.inference_mode()
def plain_features(network: nn.Module, backbone: str, picture: ModelInput) -> npt.NDArray[np.float64]:
    """What the plain network passes to its last layer, float64."""
    passed: list[torch.Tensor] = []
    head = network.get_submodule("head")
    head.register_forward_pre_hook(lambda _, inputs: passed.extend(inputs))
    network(normalised(backbone, picture))
    found: npt.NDArray[np.float64] = passed[0][0].numpy()
    return found


@torch.inference_mode()
def logits(backbone: str, picture: ModelInput) -> torch.Tensor:
    """Of the plain network in float64."""
    out: torch.Tensor = tiny_classifier(backbone).double()(normalised(backbone, picture))[0]
    return out


def normalised(backbone: str, picture: ModelInput) -> torch.Tensor:
    """The network's input in float64."""
    spec = preprocessing_of(ClassifierSpec(backbone=BACKBONES[backbone])).normalisation
    pixels = torch.tensor(picture.pixels).double()
    x = (pixels - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    return x.permute(2, 0, 1)[None]


def test_repmlpnet_is_served_in_deploy_form_and_exported_as_trained(tmp_path: Path) -> None:
    """Its convolutions are merged when it is loaded, with the difference measured; the bundle keeps both forms of the
    weights apart."""
    bundle = tiny_backbone_bundle(tmp_path, "repmlpnet")
    network, deployment = load_deployed(bundle)
    assert deployment.form == "deploy"
    assert deployment.largest_difference is not None
    assert 0 < deployment.largest_difference < 1e-5
    assert not any("repconv" in name for name in network.state_dict())
    export_checkpoint(bundle, tmp_path / "back.pth")
    assert any("repconv" in name for name in read_checkpoint(tmp_path / "back.pth").tensors)

    torch.save(network.state_dict(), tmp_path / "deployed.pth")
    deployed = import_checkpoint(tmp_path / "deployed.pth", tmp_path / "store", "deployed")
    backbone = deployed.config.architecture.backbone
    assert isinstance(backbone, RepMLPNetSpec)
    assert backbone.deploy
    again, as_in_file = load_deployed(deployed)
    assert (as_in_file.form, as_in_file.largest_difference) == ("deploy", None)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in network.state_dict().items())


def test_a_form_that_differs_too_much_is_not_served(tmp_path: Path) -> None:
    """Two convolutions that nearly cancel each other round otherwise than their sum: the network stays as trained."""
    tensors = tiny_classifier("repmlpnet").state_dict()
    for name, tensor in tensors.items():
        if "repconv" in name and tensor.ndim:
            tensor.fill_(1.0 if name.endswith(("running_var", "bn.weight")) else 0.0)
        if name.endswith("repconv1.conv.weight"):
            tensor.fill_(-1e6)
        elif name.endswith("repconv3.conv.weight"):
            tensor[:, 0, 1, 1] = 1e6
        elif name.endswith("repconv3.bn.weight"):
            tensor.fill_(1 + 1e-6)
    torch.save(tensors, tmp_path / "extreme.pth")
    network, deployment = load_deployed(import_checkpoint(tmp_path / "extreme.pth", tmp_path, "extreme"))
    assert deployment.form == "trained"
    assert deployment.largest_difference is not None
    assert deployment.largest_difference > MAX_FORM_DIFFERENCE
    assert any("repconv" in name for name in network.state_dict())


@pytest.mark.parametrize("backbone", ["cmt", "hire_mlp", "hvt"])
def test_other_backbones_have_one_form(backbone: str, tmp_path: Path) -> None:
    """Nothing is changed or measured."""
    assert load_deployed(tiny_backbone_bundle(tmp_path, backbone))[1] == AS_TRAINED


@pytest.mark.parametrize(
    ("backbone", "crop", "why"),
    [
        ("cmt", 64, "cmt of size custom takes inputs of 32 x 32 px only, not of 64 x 64 px"),
        ("hvt", 224, "hvt of size custom takes inputs of 64 x 64 px only, not of 224 x 224 px"),
        ("repmlpnet", 48, "takes inputs whose sides are multiples of 32 px, not of 48 x 48 px"),
    ],
)
def test_a_config_with_inputs_that_the_backbone_cannot_take_is_refused(
    backbone: str, crop: int, why: str, tmp_path: Path
) -> None:
    """Before any network is built."""
    bundle = tiny_backbone_bundle(tmp_path, backbone)
    document = json.loads((bundle.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    document["preprocessing"]["crop"] = crop
    (bundle.folder / CONFIG_FILE).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleInvalid, match=why):
        read_bundle(bundle.folder)


def test_repmlpnet_takes_larger_inputs_that_its_partitions_divide(tmp_path: Path) -> None:
    """Twice the size, as its authors' code does."""
    bundle = tiny_backbone_bundle(tmp_path, "repmlpnet")
    config = bundle.config
    larger = config.preprocessing.model_copy(update={"crop": 64, "resize_shorter": 64})
    wide = dataclasses.replace(bundle, config=config.model_copy(update={"preprocessing": larger}))
    predictor = make_predictor(wide, CPU, Precision.FP32, load_network(wide))
    picture = reference_input(larger)
    alone = predictor.predict(batch_of(picture, 1))[-1]
    assert isinstance(alone, ClassifyOutput)
    for rows in (2, 7):
        other = predictor.predict(batch_of(picture, rows))[-1]
        assert isinstance(other, ClassifyOutput)
        assert other.indices.tolist() == alone.indices.tolist()
        np.testing.assert_allclose(other.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("backbone", ["cmt", "repmlpnet"])
def test_a_backbone_of_one_size_is_refused_below_a_segmenter(backbone: str) -> None:
    """Its inputs would have the sizes of the pictures."""
    architecture = SemanticFPNSpec(backbone=BACKBONES[backbone], fpn_channels=8, head_channels=8)
    with pytest.raises(ValueError, match=r"takes inputs (of 32 x 32 px only|whose sides are multiples of 32 px)"):
        BundleConfig.model_validate(
            {
                "name": "mine",
                "task": "segment",
                "architecture": architecture,
                "labels": ("a", "b"),
                "preprocessing": KeepRatioSpec(long_side=128, short_side=96),
                "postprocessing": {"task": "segment"},
                "precision": "fp32",
                "source": {"description": "", "url": "", "licence": "", "attribution": ""},
                "reference": {"task": "segment", "grid": ("0",)},
                "weights_sha256": "0" * 64,
            }
        )


def test_hvt_is_no_backbone_of_a_segmenter() -> None:
    """It has no feature maps."""
    with pytest.raises(BundleInvalid, match="hvt of size custom has no feature levels: it can be a classifier only"):
        build_network(SemanticFPNSpec(backbone=BACKBONES["hvt"]), 3)


def test_semantic_fpn_on_hire_mlp_is_imported_with_the_extra_norms(tmp_path: Path) -> None:
    """The authors' segmentation backbone has a batch norm for each level; the pipeline is ADE20K's."""
    torch.manual_seed(1)
    network = build_network(SemanticFPNSpec(backbone=HIRE_MLP_SIZES["tiny"]), 150)
    tensors = network.state_dict()
    assert {f"backbone.norm{index}.weight" for index in (0, 2, 4, 6)} <= tensors.keys()
    torch.save({"meta": {}, "state_dict": tensors}, tmp_path / "sem_fpn.pth")
    config = import_checkpoint(tmp_path / "sem_fpn.pth", tmp_path, "sem-fpn-hire-mlp").config
    assert config.architecture == SemanticFPNSpec(backbone=HIRE_MLP_SIZES["tiny"])
    assert config.preprocessing == KeepRatioSpec(long_side=2048, short_side=512)
    assert isinstance(network, SemanticFPN)
