from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.errors import BundleInvalid
from model.families.classifier import ClassifierSpec
from model.families.cmt import CMT_SIZES
from model.families.convmlp import CONVMLP_SIZES, ConvMLPSpec
from model.families.mask_rcnn import MaskRCNNSpec
from model.families.registry import Architecture, BackboneSpec
from model.families.repmlpnet import REPMLPNET_SIZES
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.net.network import build_network, meta_network
from model.zoo.checkpoint import Checkpoint, read_checkpoint
from model.zoo.checkpoint_file import CheckpointFile
from model.zoo.infer import infer_architecture
from tests import goldens
from tests.model.tiny_models import ARCHITECTURES, NUM_CLASSES

ODD = ConvMLPSpec(
    tokenizer_channels=10, conv_blocks=3, stage_channels=(6, 9, 20), stage_depths=(2, 12, 1), mlp_ratios=(1, 4, 3)
)
FILES = {"classifier": "classifier", "retinanet": "retinanet", "maskrcnn": "mask_rcnn", "semfpn": "semantic_fpn"}
COUNTS = {"classifier": 1000, "retinanet": 80, "maskrcnn": 80, "semfpn": 150}


def checkpoint(tensors: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(CheckpointFile(Path("a.pth"), tensors), tensors)


@pytest.mark.parametrize("num_classes", [1, 7])
@pytest.mark.parametrize(
    "architecture",
    [
        *ARCHITECTURES.values(),
        ClassifierSpec(backbone=ODD),
        RetinaNetSpec(backbone=ODD, fpn_channels=12, head_convs=2),
        MaskRCNNSpec(backbone=ODD, fpn_channels=14, fc_channels=6, mask_convs=3),
        SemanticFPNSpec(backbone=ODD, fpn_channels=10, head_channels=12),
        MaskRCNNSpec(backbone=CONVMLP_SIZES["l"]),
    ],
    ids=lambda spec: f"{spec.family}-{spec.backbone.stage_depths}",
)
def test_the_architecture_is_inferred(architecture: Architecture, num_classes: int) -> None:
    """Widths, depths and class count are inferred from the tensors."""
    network = meta_network(architecture, num_classes)
    found, count = infer_architecture(
        checkpoint(
            {
                name: torch.zeros(1).expand(t.shape) if t.is_floating_point() else torch.zeros(t.shape, dtype=t.dtype)
                for name, t in network.state_dict().items()
            }
        )
    )
    assert (found, count) == (architecture, num_classes)


@goldens.requires_goldens
@pytest.mark.parametrize("size", ["s", "m", "l"])
@pytest.mark.parametrize("model", list(FILES))
def test_the_published_names_and_shapes_are_known(model: str, size: str) -> None:
    """All twelve kinds of published checkpoint are recognised by names and shapes."""
    keys = goldens.load(f"keys/keys_{model}_{size}.json")["keys"]
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    tensors = {name: torch.zeros((), dtype=dtypes[dtype]).expand(shape) for name, shape, dtype in keys}
    architecture, num_classes = infer_architecture(checkpoint(tensors))
    assert (architecture.family, architecture.backbone.size, num_classes) == (FILES[model], size, COUNTS[model])


def renamed(tensors: dict[str, Tensor]) -> None:
    tensors["body.weight"] = tensors.pop("head.weight")


def without_tokenizer(tensors: dict[str, Tensor]) -> None:
    del tensors["tokenizer.block.6.weight"]


def without_a_norm(tensors: dict[str, Tensor]) -> None:
    del tensors["stages.1.blocks.0.norm2.bias"]


def with_a_stranger(tensors: dict[str, Tensor]) -> None:
    tensors["auxiliary_head.conv.weight"] = torch.zeros(3)


def with_a_gap(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("stages.0.blocks.0.")]:
        tensors[name.replace("blocks.0", "blocks.5")] = tensors[name]


def with_another_width(tensors: dict[str, Tensor]) -> None:
    tensors["head.weight"] = torch.zeros(5, 17)


def of_integers(tensors: dict[str, Tensor]) -> None:
    tensors["head.bias"] = torch.zeros(5, dtype=torch.int64)


def of_complex_numbers(tensors: dict[str, Tensor]) -> None:
    tensors["head.bias"] = torch.zeros(5, dtype=torch.complex64)


def without_numbers(tensors: dict[str, Tensor]) -> None:
    tensors["head.weight"] = torch.zeros(0, 16)


def narrow(tensors: dict[str, Tensor]) -> None:
    tensors["stages.0.blocks.0.channel_mlp1.fc1.weight"] = torch.zeros(3, 8)


def with_a_scalar(tensors: dict[str, Tensor]) -> None:
    tensors["tokenizer.block.6.weight"] = torch.tensor(8.0)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (
            renamed,
            r"no supported network.*the nearest is a classifier on convmlp of size custom.*head\.weight is missing; b",
        ),
        (
            without_tokenizer,
            r"tensor tokenizer\.block\.6\.weight is missing; the nearest is a classifier on convmlp of size",
        ),
        (
            without_a_norm,
            r"a classifier on convmlp of size custom and 5 classes, but stages\.1\.blocks\.0\.norm2\.bias is missing",
        ),
        (with_a_stranger, r"auxiliary_head\.conv\.weight is unexpected"),
        (with_a_gap, r"stages\.0\.blocks\.1\.norm1\.weight is missing.*and \d+ more"),
        (with_another_width, r"head\.weight is float \(5, 17\), expected float \(5, 16\)"),
        (of_integers, r"head\.bias is integer \(5,\), expected float \(5,\)"),
        (of_complex_numbers, r"head\.bias is complex \(5,\), expected float \(5,\)"),
        (without_numbers, "has empty tensors"),
        (narrow, r"its tensors imply 0 0"),
        (with_a_scalar, r"tensor tokenizer\.block\.6\.weight is missing"),
    ],
)
def test_mismatching_tensors_are_named(damage: object, why: str) -> None:
    """A network of no family, or with missing, extra or changed tensors, is refused; the error names them."""
    tensors = build_network(ARCHITECTURES["classifier"], NUM_CLASSES).state_dict()
    assert callable(damage)
    damage(tensors)
    with pytest.raises(BundleInvalid, match=why):
        infer_architecture(checkpoint(tensors))


def test_too_few_rows_for_the_anchors_are_refused() -> None:
    """A RetinaNet with fewer outputs than anchors has no class."""
    tensors = build_network(ARCHITECTURES["retinanet"], NUM_CLASSES).state_dict()
    tensors["bbox_head.retina_cls.weight"] = torch.zeros(8, 16, 3, 3)
    with pytest.raises(BundleInvalid, match=r"bbox_head\.retina_cls\.weight has too few rows for a class"):
        infer_architecture(checkpoint(tensors))


def test_the_prefix_and_the_nearest_network_are_in_the_error(tmp_path: Path) -> None:
    """A head of one's own: the error names what was removed from the names, and five differences."""
    tensors = build_network(ClassifierSpec(backbone=CONVMLP_SIZES["s"]), NUM_CLASSES).state_dict()
    tensors["fc.weight"] = tensors.pop("head.weight")
    torch.save({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "a.pth")
    why = (
        r"without the prefix model\. of all names, it has none of the tensors head\.weight, .*; the nearest is a "
        r"classifier on convmlp of size s, with 183 of 184 tensors; head\.weight is missing; fc\.weight is unexpected"
    )
    with pytest.raises(BundleInvalid, match=why):
        infer_architecture(read_checkpoint(tmp_path / "a.pth"))


def shapes_of(spec: BackboneSpec) -> dict[str, Tensor]:
    """A published classifier's tensors, which take no memory."""
    found = meta_network(ClassifierSpec(backbone=spec), NUM_CLASSES).state_dict()
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in found.items()}


@pytest.mark.parametrize(
    ("spec", "name", "title"),
    [
        (CMT_SIZES["s"], "patch_embed_c.proj.weight", "cmt of size s"),
        (CMT_SIZES["ti"], "stem_conv1.weight", "cmt of size ti"),
        (REPMLPNET_SIZES["b224"], "stages.2.0.prebn1.weight", "repmlpnet of size b224"),
        (REPMLPNET_SIZES["t224"].model_copy(update={"deploy": True}), "stages.1.0.prebn1.weight", "size t224"),
    ],
)
def test_a_wrong_tensor_that_a_size_is_inferred_from_is_named(spec: BackboneSpec, name: str, title: str) -> None:
    """The right ones are not listed in its place: the published size with the fewest differences is shown."""
    tensors = shapes_of(spec)
    rows, *others = tensors[name].shape
    tensors[name] = torch.zeros(()).expand(2 * rows, *others)
    why = rf"looks like a classifier on .*{title} and {NUM_CLASSES} classes, but {re.escape(name)} is float \([^;]*$"
    with pytest.raises(BundleInvalid, match=why):
        infer_architecture(checkpoint(tensors))


def test_a_repmlpnet_in_two_forms_is_named() -> None:
    """A conversion that missed blocks is refused with its reason."""
    tensors = shapes_of(REPMLPNET_SIZES["t224"])
    deployed = shapes_of(REPMLPNET_SIZES["t224"].model_copy(update={"deploy": True}))
    first = "stages.0.0."
    mixed = {name: tensor for name, tensor in tensors.items() if not name.startswith(first)}
    mixed |= {name: tensor for name, tensor in deployed.items() if name.startswith(first)}
    with pytest.raises(BundleInvalid, match=r"some blocks are in deploy form .* and others as they were trained"):
        infer_architecture(checkpoint(mixed))


def test_a_file_of_another_network_lists_its_first_names() -> None:
    """Without a known backbone, no network is the nearest."""
    tensors = {f"layer{index}.weight": torch.zeros(1) for index in range(9)}
    with pytest.raises(
        BundleInvalid, match=r"its 9 tensors are of no known backbone \(convmlp.*; the first are layer0\.weight"
    ):
        infer_architecture(checkpoint(tensors))
