"""The GPU's answers compared with the CPU's."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from model.bundle import bundle_names, find_bundle, read_bundle
from model.precision import Precision, make_predictor, select_precision
from model.predictor import Predictor, load_network, predict_image
from model.reference import REFERENCE_PARAMS, REFERENCE_PICTURE, mismatch
from model.types import Batch
from tests.model.batches import GEOMETRIES, PARAMS, assert_close, pictures
from tests.model.tiny_models import ARCHITECTURES, tiny_bundle

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_exact_answers_are_those_of_the_cpu(tmp_path: Path, family: str) -> None:
    """In float32 labels are equal, scores and boxes equal up to rounding."""
    bundle = tiny_bundle(tmp_path, family)
    batch = Batch(pictures(), GEOMETRIES, PARAMS)
    ours, theirs = (Predictor(bundle, device).predict(batch) for device in (GPU, CPU))
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_an_answer_does_not_depend_on_who_shares_its_batch(tmp_path: Path, family: str) -> None:
    """A row's output is the same alone and in a batch."""
    predictor = Predictor(tiny_bundle(tmp_path, family), GPU)
    pixels = pictures()
    together = predictor.predict(Batch(pixels, GEOMETRIES, PARAMS))
    for row, output in enumerate(together):
        one = slice(row, row + 1)
        (alone,) = predictor.predict(Batch(pixels[one], GEOMETRIES[one], PARAMS[one]))
        assert_close(output, alone)


@pytest.mark.parametrize("precision", [Precision.EXACT, Precision.FP32, Precision.FP16])
@pytest.mark.parametrize("name", bundle_names(None))
def test_embedded_models_pass_their_reference_check_in_each_precision(name: str, precision: Precision) -> None:
    """On a GPU the reference picture's answer is within the bundle's tolerances."""
    bundle = read_bundle(find_bundle(name, None))
    predictor = make_predictor(bundle, GPU, precision, load_network(bundle))
    result = predict_image(predictor, bundle.config, REFERENCE_PICTURE.read_bytes(), REFERENCE_PARAMS)
    assert mismatch(result, bundle.config.reference) is None


@pytest.mark.parametrize("name", bundle_names(None))
def test_a_precision_is_chosen_that_answers_as_float32_does(name: str) -> None:
    """Half precision is tried on a GPU, and the selected precision has no mismatch."""
    bundle = read_bundle(find_bundle(name, None))
    selection = select_precision(bundle, GPU, copy.deepcopy(load_network(bundle)))
    tried = {trial.precision: trial for trial in selection.trials}
    assert Precision.FP16 in tried
    assert tried[selection.precision].mismatch is None
