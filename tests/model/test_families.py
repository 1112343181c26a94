"""Registering a backbone and a family is all that importing, serving and exporting them needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import PositiveInt, ValidationError
from torch import Tensor, nn

from model.bundle import CONFIG_FILE, BundleConfig, read_bundle
from model.errors import NotFinite
from model.families.classifier import ClassifierSpec
from model.families.convmlp import CONVMLP_SIZES
from model.families.registry import (
    BACKBONES,
    FAMILIES,
    ArchitectureSpec,
    BackboneFamily,
    BackboneSpec,
    ModelFamily,
)
from model.families.semantic_fpn import SemanticFPNSpec
from model.net.label_maps import predict_segments
from model.net.network import (
    BackboneNetwork,
    FamilyNetwork,
    StateDictShapes,
    build_backbone,
    build_network,
    infer_backbone,
)
from model.postprocess.results import postprocess
from model.predictor import Predictor, predict_image
from model.reference import REFERENCE_PARAMS, REFERENCE_PICTURE, mismatch, reference_input
from model.spec import KeepRatioSpec, SegmentPostSpec
from model.types import Batch, Task
from model.zoo.export import export_checkpoint
from model.zoo.importer import import_checkpoint
from service.settings import Settings
from service.worker.torch_runner import TorchRunner


class StripesSpec(BackboneSpec):
    """A backbone of four strided convolutions."""

    family: Literal["stripes"] = "stripes"
    channels: PositiveInt

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        return (self.channels,) * 4


class Stripes(nn.Module):
    def __init__(self, spec: StripesSpec) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, spec.channels, 3, stride=2, padding=1), nn.BatchNorm2d(spec.channels), nn.ReLU()
        )
        self.halvings = nn.ModuleList(nn.Conv2d(spec.channels, spec.channels, 3, stride=2, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [self.stem(x)]
        for halve in self.halvings:
            levels.append(halve(levels[-1]))
        return levels[1:]


class StripesClassifier(Stripes):
    def __init__(self, spec: StripesSpec, num_classes: int) -> None:
        super().__init__(spec)
        self.head = nn.Linear(spec.channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.head(super().forward(x)[-1].mean(dim=(2, 3)))
        return out


STRIPES_NETWORK = BackboneNetwork(
    build=Stripes,
    build_classifier=StripesClassifier,
    key="stem.0.weight",
    infer=lambda shapes, prefix: StripesSpec(channels=shapes.rows(f"{prefix}stem.0.weight")),
)
STRIPES = BackboneFamily("stripes", StripesSpec, {"xs": StripesSpec(channels=8)}, f"{__name__}:STRIPES_NETWORK")


class PixelsSpec(ArchitectureSpec):
    """A segmenter: one 1x1 convolution on the finest level of its backbone."""

    family: Literal["pixels"] = "pixels"


class Pixels(nn.Module):
    def __init__(self, spec: PixelsSpec, num_classes: int) -> None:
        super().__init__()
        self.backbone = build_backbone(spec.backbone)
        self.pixel_head = nn.Conv2d(spec.backbone.level_channels[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pixel_head(self.backbone(x)[0])
        return out


def infer_pixels(shapes: StateDictShapes) -> tuple[PixelsSpec, int]:
    return PixelsSpec(backbone=infer_backbone(shapes)), shapes.rows("pixel_head.weight")


PIXELS_NETWORK = FamilyNetwork(
    build=Pixels, predict=predict_segments, class_key="pixel_head.weight", infer=infer_pixels
)
PIXELS = ModelFamily(
    "pixels",
    Task.SEGMENT,
    PixelsSpec,
    KeepRatioSpec(long_side=128, short_side=96),
    SegmentPostSpec(),
    f"{__name__}:PIXELS_NETWORK",
)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    BACKBONES["stripes"], FAMILIES["pixels"] = STRIPES, PIXELS
    yield
    del BACKBONES["stripes"], FAMILIES["pixels"]


TINY = StripesSpec(channels=8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClassifierSpec(backbone=TINY),
        lambda: SemanticFPNSpec(backbone=TINY, fpn_channels=8, head_channels=8),
        lambda: PixelsSpec(backbone=TINY),
        lambda: PixelsSpec(backbone=CONVMLP_SIZES["s"]),
    ],
    ids=["classifier-stripes", "semantic_fpn-stripes", "pixels-stripes", "pixels-convmlp"],
)
def test_a_registered_family_is_imported_served_and_exported(
    make: Callable[[], ArchitectureSpec], tmp_path: Path
) -> None:
    """Its checkpoint becomes a bundle; the worker's runner gives the reference answer; an export has its tensors."""
    architecture = make()
    torch.manual_seed(1)
    tensors = build_network(architecture, 3).state_dict()
    torch.save(tensors, tmp_path / "mine.pth")
    import_checkpoint(tmp_path / "mine.pth", tmp_path / "store", "mine")
    bundle = read_bundle(tmp_path / "store" / "mine")
    config = bundle.config
    assert (config.architecture, config.task) == (architecture, FAMILIES[architecture.family].task)
    assert config.preprocessing == FAMILIES[architecture.family].preprocessing
    predictor = Predictor(bundle, torch.device("cpu"))
    result = predict_image(predictor, config, REFERENCE_PICTURE.read_bytes(), REFERENCE_PARAMS)
    assert mismatch(result, config.reference) is None
    runner = TorchRunner([bundle], Settings(device="cpu", compute_threads=1, precision="fp32"))
    picture = reference_input(config.preprocessing)
    batch = Batch(np.stack([picture.pixels] * 2), (picture.geometry,) * 2, (REFERENCE_PARAMS,) * 2)
    for raw in runner.run("mine", batch, 1):
        assert not isinstance(raw, NotFinite)
        assert mismatch(postprocess(raw, config, picture.geometry.original), config.reference) is None
    export_checkpoint(bundle, tmp_path / "back.pth")
    import_checkpoint(tmp_path / "back.pth", tmp_path / "store", "again")
    assert read_bundle(tmp_path / "store" / "again").config.weights_sha256 == config.weights_sha256


def test_a_config_survives_being_written_and_read(tmp_path: Path) -> None:
    """A config has the names of family and backbone; it is read back equal, with its size."""
    torch.save(build_network(ClassifierSpec(backbone=TINY), 3).state_dict(), tmp_path / "mine.pth")
    bundle = import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine")
    text = (bundle.folder / CONFIG_FILE).read_bytes()
    config = BundleConfig.model_validate_json(text)
    assert config == bundle.config
    assert config.model_dump_json(indent=2).encode() in text
    assert b'"family": "stripes"' in text
    assert config.architecture.backbone.size == "xs"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'"family": "stripes"', b'"family": "dots"', "whose family is one of convmlp, .*stripes"),
        (b'"family": "classifier"', b'"family": "oracle"', "one of classifier, retinanet, mask_rcnn, upernet"),
        (b'"channels": 8', b'"channels": "8"', "channels: Input should be a valid integer"),
        (b'"channels": 8', b'"channels": 8, "depth": 2', "depth: Extra inputs are not permitted"),
    ],
)
def test_what_no_registered_family_reads_is_refused(old: bytes, new: bytes, why: str, tmp_path: Path) -> None:
    """An unknown family, backbone or field, or a value of another type, is an error that names it."""
    torch.save(build_network(ClassifierSpec(backbone=TINY), 3).state_dict(), tmp_path / "mine.pth")
    bundle = import_checkpoint(tmp_path / "mine.pth", tmp_path, "mine")
    text = (bundle.folder / CONFIG_FILE).read_bytes()
    with pytest.raises(ValidationError, match=why):
        BundleConfig.model_validate_json(text.replace(old, new))
