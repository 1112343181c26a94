from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.errors import BundleInvalid
from model.predictor import Predictor, default_device
from model.types import (
    Batch,
    ClassifyOutput,
    DetectOutput,
    QueryParams,
    SegmentOutput,
)
from tests.model.batches import GEOMETRIES, HEIGHT, PARAMS, WIDTH, assert_close, pictures
from tests.model.tiny_models import ARCHITECTURES, NUM_CLASSES, metadata, tiny_bundle

CPU = torch.device("cpu")
MakePredictor = Callable[[str], Predictor]


@pytest.fixture(scope="module")
def predictor_of(tmp_path_factory: pytest.TempPathFactory) -> MakePredictor:
    def make(family: str) -> Predictor:
        return Predictor(tiny_bundle(tmp_path_factory.mktemp(family), family), CPU)

    return make


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_an_answer_is_the_same_alone_and_in_a_batch(family: str, predictor_of: MakePredictor) -> None:
    """Other pictures, padding and parameters in the batch do not change a row's output."""
    predictor, pixels = predictor_of(family), pictures()
    together = predictor.predict(Batch(pixels, GEOMETRIES, PARAMS))
    assert len(together) == len(GEOMETRIES)
    for row in range(len(GEOMETRIES)):
        one = slice(row, row + 1)
        (alone,) = predictor.predict(Batch(pixels[one], GEOMETRIES[one], PARAMS[one]))
        assert_close(together[row], alone)
    if isinstance(together[1], DetectOutput):
        assert len(together[1].boxes) == 40


@pytest.mark.parametrize("family", ["retinanet", "mask_rcnn", "semantic_fpn"])
def test_padding_bytes_do_not_matter(family: str, predictor_of: MakePredictor) -> None:
    """Padding is set to zero after normalisation, whatever its bytes."""
    predictor, clean, dirty = predictor_of(family), pictures(), pictures()
    for row, geometry in enumerate(GEOMETRIES):
        dirty[row, geometry.content.height :] = 200
        dirty[row, :, geometry.content.width :] = 13
    assert (clean != dirty).any()
    expected = predictor.predict(Batch(clean, GEOMETRIES, PARAMS))
    for one, other in zip(predictor.predict(Batch(dirty, GEOMETRIES, PARAMS)), expected, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("family", ["retinanet", "mask_rcnn"])
def test_detections_follow_each_rows_parameters(family: str, predictor_of: MakePredictor) -> None:
    """Scores fall and exceed the row's threshold; limits and masks are the row's; boxes are within its picture."""
    outputs = predictor_of(family).predict(Batch(pictures(), GEOMETRIES, PARAMS))
    for output, geometry, params in zip(outputs, GEOMETRIES, PARAMS, strict=True):
        assert isinstance(output, DetectOutput)
        assert 0 < len(output.boxes) <= params.max_detections
        assert (np.diff(output.scores) <= 0).all()
        assert (output.scores > (0.3 if params.score_threshold is None else params.score_threshold)).all()
        assert set(output.classes.tolist()) <= set(range(NUM_CLASSES))
        assert (output.boxes >= 0).all()
        assert (output.boxes[:, 2] <= geometry.original.width + 1e-3).all()
        assert (output.boxes[:, 3] <= geometry.original.height + 1e-3).all()
        assert output.boxes.dtype == output.scores.dtype == np.float32
        assert output.classes.dtype == np.int64
        assert (output.mask_logits is not None) == (family == "mask_rcnn" and params.masks)


@pytest.mark.parametrize("family", ["retinanet", "mask_rcnn"])
def test_a_threshold_that_nothing_reaches_gives_an_empty_answer(family: str, predictor_of: MakePredictor) -> None:
    """Without detections, arrays have no rows."""
    params = (QueryParams(score_threshold=1.0), *PARAMS[1:])
    output = predictor_of(family).predict(Batch(pictures(), GEOMETRIES, params))[0]
    assert isinstance(output, DetectOutput)
    assert output.boxes.shape == (0, 4)
    assert output.scores.shape == output.classes.shape == (0,)
    if family == "mask_rcnn":
        assert output.mask_logits is not None
        assert output.mask_logits.shape == (0, 28, 28)


def test_top_k_is_capped_at_the_number_of_classes(predictor_of: MakePredictor) -> None:
    """A larger k gives all classes; their probabilities sum to one."""
    outputs = predictor_of("classifier").predict(Batch(pictures(), GEOMETRIES, PARAMS))
    assert all(isinstance(output, ClassifyOutput) for output in outputs)
    assert [len(output.scores) for output in outputs if isinstance(output, ClassifyOutput)] == [2, 5, 1, 5]
    last = outputs[3]
    assert isinstance(last, ClassifyOutput)
    assert last.scores.sum() == pytest.approx(1.0, abs=1e-5)
    assert sorted(last.indices.tolist()) == list(range(NUM_CLASSES))


def test_a_label_map_has_the_pictures_size(predictor_of: MakePredictor) -> None:
    """Each row's label map has the size of its upright picture."""
    outputs = predictor_of("semantic_fpn").predict(Batch(pictures(), GEOMETRIES, PARAMS))
    for output, geometry in zip(outputs, GEOMETRIES, strict=True):
        assert isinstance(output, SegmentOutput)
        assert output.label_map.shape == (geometry.original.height, geometry.original.width)
        assert len(np.unique(output.label_map)) > 1


@pytest.mark.parametrize("family", list(ARCHITECTURES))
def test_bf16_answers_nearly_as_fp32(family: str, tmp_path: Path) -> None:
    """Reduced precision changes values slightly and no shape."""
    bundle = tiny_bundle(tmp_path, family)
    params = (QueryParams(max_detections=3),) * len(GEOMETRIES)
    batch = Batch(pictures(), GEOMETRIES, params)
    full, reduced = Predictor(bundle, CPU).predict(batch), Predictor(bundle, CPU, "bf16").predict(batch)
    for one, other in zip(full, reduced, strict=True):
        match one, other:
            case ClassifyOutput(), ClassifyOutput():
                by_class = dict(zip(other.indices.tolist(), other.scores.tolist(), strict=True))
                assert by_class[int(one.indices[0])] == pytest.approx(float(one.scores[0]), abs=0.05)
            case DetectOutput(), DetectOutput():
                assert one.boxes.dtype == other.boxes.dtype == np.float32
                np.testing.assert_allclose(one.scores, other.scores, atol=0.1)
            case SegmentOutput(), SegmentOutput():
                assert (one.label_map == other.label_map).mean() > 0.95
            case _:
                pytest.fail("outputs of different kinds")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    """Weights that do not match are BundleInvalid."""
    wrong, right = tiny_bundle(tmp_path / "a", "retinanet"), tiny_bundle(tmp_path / "b", "classifier")
    right.weights_path.write_bytes(wrong.weights_path.read_bytes())
    with pytest.raises(BundleInvalid, match="does not fit"):
        Predictor(right, CPU)


def test_read_only_pixels_are_accepted(predictor_of: MakePredictor) -> None:
    """Views of a received message are read-only."""
    pixels = pictures()
    pixels.flags.writeable = False
    assert len(predictor_of("classifier").predict(Batch(pixels, GEOMETRIES, PARAMS))) == len(GEOMETRIES)


def test_the_default_device_is_usable() -> None:
    """Without a GPU it is the CPU; either way tensors can be made on it."""
    assert torch.zeros(1, device=default_device()).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_tiny_bundles_pad_like_detectors_and_segmenters() -> None:
    """The geometries above match the bundles' pipeline: within 128 x 96 px, padded to 32."""
    preprocessing = metadata("retinanet").preprocessing
    assert preprocessing.kind == "keep_ratio"
    assert (preprocessing.long_side, preprocessing.short_side) == (WIDTH, HEIGHT)
    assert HEIGHT % preprocessing.pad_multiple == WIDTH % preprocessing.pad_multiple == 0
