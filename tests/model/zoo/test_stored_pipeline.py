from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch

from model.bundle import BundleConfig, read_bundle
from model.errors import BundleInvalid
from model.families.registry import FAMILIES
from model.predictor import Predictor, predict_image
from model.spec import CenterCropSpec, DetectPostSpec, FixedSizeSpec, KeepRatioSpec, Normalisation
from model.types import DetectResult, QueryParams, SegmentResult
from model.zoo.export import export_checkpoint
from model.zoo.importer import PipelineOptions, import_checkpoint
from model.zoo.pipeline import Pipeline, PipelineParts
from tests.model.tiny_models import tiny_bundle, tiny_checkpoint, tiny_network
from tests.model.zoo.test_toolbox_config import MMDET_3

DEFAULT = PipelineOptions()


def imported(folder: Path, file: Path, options: PipelineOptions = DEFAULT) -> tuple[BundleConfig, str]:
    """The config, and the notes in one text."""
    notes: list[str] = []
    bundle = import_checkpoint(file, folder / "store", "mine", pipeline=options, on_note=notes.append)
    return bundle.config, "\n".join(notes)


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "mine.pth")
    return folder / "mine.pth"


TENSORS = tiny_network("classifier").state_dict()


def test_timms_arguments_are_the_pipeline(tmp_path: Path) -> None:
    """What its training script was given; what it was not given is assumed, and the note lists it."""
    args = argparse.Namespace(
        img_size=192, input_size=None, crop_pct=1.0, interpolation="bilinear", mean=None, std=None
    )
    config, notes = imported(tmp_path, saved(tmp_path, {"state_dict": TENSORS, "args": args}))
    assert config.preprocessing == CenterCropSpec(resize_shorter=192, crop=192, interpolation="bilinear")
    assert "(from args in the file; normalisation assumed)" in notes
    args = argparse.Namespace(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], interpolation="random")
    config, notes = imported(tmp_path, saved(tmp_path, {"state_dict": TENSORS, "args": args}))
    assert config.preprocessing.normalisation.mean == (127.5, 127.5, 127.5)
    assert "; interpolation, size assumed)" in notes


def test_timms_and_transformers_json_beside_the_weights_is_the_pipeline(tmp_path: Path) -> None:
    """As timm's and transformers' folders have it; a path to the file reads it, too."""
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    timm = {
        "architecture": "convmlp_s",
        "pretrained_cfg": {
            **{"input_size": [3, 160, 160], "crop_pct": 0.8, "interpolation": "bilinear", "crop_mode": "center"},
            **{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(timm))
    config, notes = imported(tmp_path, tmp_path)
    assert isinstance(config.preprocessing, CenterCropSpec)
    assert (config.preprocessing.resize_shorter, config.preprocessing.crop) == (200, 160)
    assert "(from config.json)" in notes
    transformers = {
        **{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2},
        **{"size": {"shortest_edge": 180}, "crop_size": {"height": 160, "width": 160}},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(transformers))
    config, notes = imported(tmp_path, tmp_path / "model.safetensors")
    assert isinstance(config.preprocessing, CenterCropSpec)
    assert (config.preprocessing.resize_shorter, config.preprocessing.crop) == (180, 160)
    timm["pretrained_cfg"]["crop_mode"] = "border"  # type: ignore[index]
    (tmp_path / "config.json").write_text(json.dumps(timm))
    with pytest.raises(
        BundleInvalid, match=r"from config\.json: its crop mode is border, which is not served; give --"
    ):
        imported(tmp_path, tmp_path)


def test_pictures_may_be_squashed_to_a_square(tmp_path: Path) -> None:
    """timm's crop mode `squash`, and the `size` of transformers with a height and a width; other sizes are refused."""
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    timm = {"pretrained_cfg": {"input_size": [3, 160, 160], "crop_pct": 0.8, "crop_mode": "squash"}}
    (tmp_path / "config.json").write_text(json.dumps(timm))
    config, notes = imported(tmp_path, tmp_path)
    assert config.preprocessing == CenterCropSpec(resize_shorter=200, crop=160, squash=True)
    assert "both sides 200 px, centre 160 x 160 px" in notes
    constants = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}
    for size, crop, expected in (
        ({"height": 96, "width": 96}, {}, CenterCropSpec(resize_shorter=96, crop=96, squash=True)),
        (
            {"height": 96, "width": 96},
            {"crop_size": {"height": 64, "width": 64}, "do_center_crop": False},
            CenterCropSpec(resize_shorter=96, crop=96, squash=True),
        ),
    ):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**constants, "size": size, **crop}))
        config, _ = imported(tmp_path, tmp_path)
        found = config.preprocessing
        assert isinstance(found, CenterCropSpec)
        assert found.model_copy(update={"normalisation": expected.normalisation}) == expected
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**constants, "size": {"height": 96, "width": 64}}))
    with pytest.raises(BundleInvalid, match="it resizes to 64 x 96 px, which is no square, which is not served"):
        imported(tmp_path, tmp_path)


@pytest.mark.parametrize("family", ["retinanet", "semantic_fpn"])
def test_a_fixed_size_answers_as_the_resized_picture_does(tmp_path: Path, family: str) -> None:
    """Boxes are scaled by each axis of its own; a label map covers the whole picture; the export keeps the pipeline."""
    text = "test_pipeline = [dict(type='Resize', scale=(160, 64), keep_ratio=False)]"
    content = {"state_dict": tiny_network(family).state_dict(), "meta": {"cfg": text}}
    flags = PipelineParts("from the flags", thresholds={"score_threshold": 0.0} if family == "retinanet" else {})
    config, _ = imported(tmp_path, saved(tmp_path, content), PipelineOptions(flags=flags))
    assert isinstance(config.preprocessing, FixedSizeSpec)
    assert (config.preprocessing.width, config.preprocessing.height) == (160, 64)
    predictor = Predictor(read_bundle(tmp_path / "store/mine"), torch.device("cpu"))
    pixels = np.random.default_rng(3).integers(0, 256, (128, 80, 3), dtype=np.uint8)
    resized = cv2.resize(pixels, (160, 64), interpolation=cv2.INTER_LINEAR)
    whole, part = (
        predict_image(predictor, config, cv2.imencode(".png", one)[1].tobytes(), QueryParams())
        for one in (pixels, resized)
    )
    if isinstance(whole, DetectResult) and isinstance(part, DetectResult):
        assert len(whole.detections) == len(part.detections) > 0
        for one, other in zip(whole.detections, part.detections, strict=True):
            assert (one.index, one.score) == (other.index, other.score)
            scaled = (other.box.xmin / 2, other.box.ymin * 2, other.box.xmax / 2, other.box.ymax * 2)
            assert (one.box.xmin, one.box.ymin, one.box.xmax, one.box.ymax) == pytest.approx(scaled, abs=1e-3)
    else:
        assert isinstance(whole, SegmentResult)
        assert whole.label_map.shape == (128, 80)
    export_checkpoint(read_bundle(tmp_path / "store/mine"), tmp_path / "mine.pth")
    assert imported(tmp_path, tmp_path / "mine.pth")[0].preprocessing == config.preprocessing


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_a_toolboxes_configuration_is_the_pipeline(tmp_path: Path, key: str) -> None:
    """mmcv stores its text as `meta.config`, mmengine as `meta.cfg`."""
    content = {"state_dict": tiny_network("retinanet").state_dict(), "meta": {key: MMDET_3, "CLASSES": tuple("abcde")}}
    config, notes = imported(tmp_path, saved(tmp_path, content))
    assert isinstance(config.preprocessing, KeepRatioSpec)
    assert (config.preprocessing.long_side, config.preprocessing.short_side) == (1000, 600)
    assert config.postprocessing == DetectPostSpec(score_threshold=0.3, nms_iou=0.55, candidates_per_level=700)
    assert f"scores above 0.3 (from meta.{key} in the file)" in notes
    assert "labels: a, b, c, … (meta.CLASSES in the file)" in notes


def test_a_configuration_file_can_be_given(tmp_path: Path) -> None:
    """--config precedes what the checkpoint has, and a flag precedes both."""
    content = {"state_dict": tiny_network("retinanet").state_dict(), "meta": {"config": "score = 1"}}
    (tmp_path / "train.py").write_text(MMDET_3)
    flags = PipelineParts("from the flags", thresholds={"score_threshold": 0.9})
    options = PipelineOptions(config=tmp_path / "train.py", flags=flags)
    config, notes = imported(tmp_path, saved(tmp_path, content), options)
    assert config.postprocessing == DetectPostSpec(score_threshold=0.9, nms_iou=0.55, candidates_per_level=700)
    assert "(from train.py, from the flags)" in notes
    with pytest.raises(BundleInvalid, match=r"none\.py cannot be read: No such file"):
        imported(tmp_path, saved(tmp_path, content), PipelineOptions(config=tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("lr = 0.1")
    with pytest.raises(BundleInvalid, match=r"empty\.py has no pipeline"):
        imported(tmp_path, saved(tmp_path, content), PipelineOptions(config=tmp_path / "empty.py"))


def test_a_model_can_be_served_like_another(tmp_path: Path) -> None:
    """--like takes its pipeline, which must be of the same kind."""
    like = Pipeline(
        CenterCropSpec(resize_shorter=100, crop=90), FAMILIES["classifier"].postprocessing, ("as of other",)
    )
    config, notes = imported(tmp_path, tiny_checkpoint(tmp_path, "classifier"), PipelineOptions(like=like))
    assert config.preprocessing == CenterCropSpec(resize_shorter=100, crop=90)
    assert "(as of other)" in notes
    with pytest.raises(BundleInvalid, match="is for another task than the model that it should be served like"):
        imported(tmp_path, tiny_checkpoint(tmp_path, "retinanet"), PipelineOptions(like=like))


def test_nothing_is_assumed_without_a_word(tmp_path: Path) -> None:
    """Weights alone: the family's pipeline, and invented labels, are marked."""
    _, notes = imported(tmp_path, tiny_checkpoint(tmp_path, "classifier"))
    assert "(assumed; --like, --config or --input-size gives the one of the training)" in notes
    assert "labels: class 0, class 1, class 2, … (assumed; --labels gives names)" in notes


@pytest.mark.parametrize("family", ["classifier", "retinanet", "mask_rcnn", "semantic_fpn"])
def test_an_export_comes_back_as_it_was(tmp_path: Path, family: str) -> None:
    """Labels, pipeline, thresholds, source, weights and so the whole config; a bundle's own weights likewise."""
    bundle = tiny_bundle(tmp_path, family)
    export_checkpoint(bundle, tmp_path / "tiny.pth")
    for file in (tmp_path / "tiny.pth", bundle.weights_path):
        config = import_checkpoint(file, tmp_path / "store", "tiny").config
        assert config.model_dump(exclude={"reference"}) == bundle.config.model_dump(exclude={"reference"})


def test_a_changed_export_keeps_its_pipeline_and_not_its_figures(tmp_path: Path) -> None:
    """Weights that were trained on: source and accuracy were the former weights'."""
    bundle = tiny_bundle(tmp_path, "retinanet")
    export_checkpoint(bundle, tmp_path / "tiny.pth")
    content = torch.load(tmp_path / "tiny.pth", weights_only=True)
    content["state_dict"]["bbox_head.retina_cls.bias"] += 1
    config, _ = imported(tmp_path, saved(tmp_path, content))
    assert config.preprocessing == bundle.config.preprocessing
    assert config.postprocessing == bundle.config.postprocessing
    assert config.source.description.startswith("imported from mine.pth")
    content["meta"]["convmlp_serving"] = '{"labels": []}'
    with pytest.raises(BundleInvalid, match="has a pipeline of `convmlp models export` that this version cannot read"):
        imported(tmp_path, saved(tmp_path, content))


HALF = [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 96}, (96, 96, True)),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 128, "crop_size": 96}, (128, 96, True)),
        ({"size": 96}, (96, 96, True)),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 96, "crop_size": 96}, (96, 96, False)),
        (
            {"image_processor_type": "BitImageProcessor", "size": 128, "crop_size": {"height": 96, "width": 96}},
            (128, 96, False),
        ),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 96, "crop_pct": 0.875}, (109, 96, False)),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}, "crop_pct": 0.875},
            (384, 384, True),
        ),
        (
            {"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 96}, "crop_pct": 0.9},
            (106, 96, False),
        ),
        ({"image_processor_type": "LevitImageProcessorFast", "size": 96}, (109, 96, False)),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 96}}, (96, 96, False)),
    ],
)
def test_sizes_of_transformers_image_processors(
    tmp_path: Path, found: dict[str, object], expected: tuple[int, int, bool]
) -> None:
    """A single number is both sides, or the shorter one, as each processor takes it; some divide it by a fraction."""
    safetensors.torch.save_file(TENSORS, tmp_path / "model.safetensors")
    constants = {"image_mean": HALF, "image_std": HALF, "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**constants, **found}))
    config, notes = imported(tmp_path, tmp_path)
    resize, crop, squash = expected
    levels = Normalisation(mean=(127.5,) * 3, std=(127.5,) * 3)
    assert config.preprocessing == CenterCropSpec(
        resize_shorter=resize, crop=crop, interpolation="bilinear", squash=squash, normalisation=levels
    )
    assert "assumed" not in notes.partition("labels:")[0]


@pytest.mark.parametrize(
    ("found", "mean", "std"),
    [
        ({"do_normalize": False}, 0.0, 255.0),
        ({"do_normalize": False, "do_rescale": False}, 0.0, 1.0),
        ({"do_rescale": False, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, 1.0, 1.0),
        ({"rescale_factor": 0.00392156862745098, "image_mean": HALF, "image_std": HALF}, 127.5, 127.5),
    ],
)
def test_levels_of_transformers_image_processors(
    tmp_path: Path, found: dict[str, object], mean: float, std: float
) -> None:
    """Without normalisation, and without rescaling, the levels are what the processor gives."""
    (tmp_path / "a.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor", "size": 96, **found}))
    config, _ = imported(tmp_path, saved(tmp_path, TENSORS), PipelineOptions(config=tmp_path / "a.json"))
    assert config.preprocessing.normalisation == Normalisation(mean=(mean,) * 3, std=(std,) * 3)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"rescale_factor": 1 / 127.5}, r"rescales grey levels by 0\.0078.*--mean and --std"),
        ({"do_flip_channel_order": True}, r"order BGR, .*; reverse the input channels.*--mean and --std"),
        ({"resample": 1}, r"resizes by the filter 1, .*--interpolation"),
        ({"size": {"shortest_edge": 96}, "do_center_crop": False}, r"side to 96 px and crops nothing, .*--input-size"),
    ],
)
def test_what_transformers_image_processors_do_and_this_does_not(
    tmp_path: Path, found: dict[str, object], reason: str
) -> None:
    """Another scale, another order of colours, another filter, pictures of any ratio: refused, with the flag."""
    content = {"image_mean": HALF, "image_std": HALF, "size": 96, **found}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(BundleInvalid, match=reason):
        imported(tmp_path, saved(tmp_path, TENSORS), PipelineOptions(config=tmp_path / "a.json"))


def test_timms_other_filters_are_refused(tmp_path: Path) -> None:
    """Lanczos was served as bicubic before."""
    file = saved(tmp_path, {"state_dict": TENSORS, "pretrained_cfg": {"interpolation": "lanczos"}})
    with pytest.raises(BundleInvalid, match=r"resizes by the filter lanczos, .*--interpolation"):
        imported(tmp_path, file)
    config, _ = imported(tmp_path, file, PipelineOptions(flags=PipelineParts("flags", interpolation="bicubic")))
    assert isinstance(config.preprocessing, CenterCropSpec)
