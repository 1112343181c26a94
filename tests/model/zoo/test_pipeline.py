from __future__ import annotations

from dataclasses import replace

import pytest

from model.errors import BundleInvalid
from model.families.registry import FAMILIES
from model.spec import CenterCropSpec, DetectPostSpec, FixedSizeSpec, KeepRatioSpec, Normalisation
from model.zoo.pipeline import Pipeline, PipelineParts, grey_levels, three_numbers

CLASSIFIER = Pipeline.default(FAMILIES["classifier"].preprocessing, FAMILIES["classifier"].postprocessing)
DETECTOR = Pipeline.default(FAMILIES["retinanet"].preprocessing, FAMILIES["retinanet"].postprocessing)
NOTHING = PipelineParts("a source")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (replace(NOTHING, crop=192), CenterCropSpec(resize_shorter=212, crop=192)),
        (replace(NOTHING, crop=192, resize=200), CenterCropSpec(resize_shorter=200, crop=192)),
        (replace(NOTHING, resize=256), CenterCropSpec(resize_shorter=256, crop=224)),
        (replace(NOTHING, crop_fraction=0.875), CenterCropSpec(resize_shorter=256, crop=224)),
        (replace(NOTHING, crop=384, crop_fraction=1.0), CenterCropSpec(resize_shorter=384, crop=384)),
        (replace(NOTHING, interpolation="bilinear"), CenterCropSpec(interpolation="bilinear")),
        (replace(NOTHING, squash=True), CenterCropSpec(squash=True)),
        (
            replace(NOTHING, mean=(1, 2, 3), std=(4, 5, 6)),
            CenterCropSpec(normalisation=Normalisation(mean=(1, 2, 3), std=(4, 5, 6))),
        ),
    ],
)
def test_a_classifiers_parts_are_applied(parts: PipelineParts, expected: CenterCropSpec) -> None:
    """The rest stays as it was; without a shorter side, the crop keeps its share of it, rounded down as timm does."""
    assert CLASSIFIER.updated(parts).preprocessing == expected


def test_a_detectors_parts_are_applied() -> None:
    """Bounds, padding and thresholds."""
    parts = replace(NOTHING, long_side=640, short_side=480, pad_multiple=16, thresholds={"score_threshold": 0.3})
    found = DETECTOR.updated(parts)
    assert found.preprocessing == KeepRatioSpec(long_side=640, short_side=480, pad_multiple=16)
    assert found.postprocessing == DetectPostSpec(score_threshold=0.3)
    fixed = found.updated(replace(NOTHING, fixed_size=(640, 512)))
    assert fixed.preprocessing == FixedSizeSpec(width=640, height=512, pad_multiple=16)
    renormalised = fixed.updated(replace(NOTHING, mean=(1, 2, 3), std=(4, 5, 6)))
    normalisation = Normalisation(mean=(1, 2, 3), std=(4, 5, 6))
    assert renormalised.preprocessing == FixedSizeSpec(
        width=640, height=512, pad_multiple=16, normalisation=normalisation
    )
    assert "resized to 640 x 512 px, bilinear, padded to multiples of 16" in str(fixed)
    assert fixed.updated(parts).preprocessing == found.preprocessing


def test_the_text_has_sources_and_what_is_assumed() -> None:
    """Nothing is assumed without a word."""
    assert str(CLASSIFIER).endswith("(assumed; --like, --config or --input-size gives the one of the training)")
    sized = CLASSIFIER.updated(replace(NOTHING, crop=192))
    assert str(sized) == (
        "shorter side 212 px, centre 192 x 192 px, bicubic, mean 123.7 116.3 103.5, std 58.4 57.12 57.38 "
        "(a source; interpolation, normalisation assumed)"
    )
    known = sized.updated(replace(NOTHING, source="flags", interpolation="bicubic", mean=(1, 1, 1), std=(1, 1, 1)))
    assert str(known).endswith("(a source, flags)")
    assert "scores above 0.05" in str(DETECTOR)


@pytest.mark.parametrize(
    ("base", "parts", "why"),
    [
        (CLASSIFIER, replace(NOTHING, crop=9000), "9964 px is too large; at most 8192 px"),
        (CLASSIFIER, replace(NOTHING, crop=-3), "resize_shorter is -4"),
        (CLASSIFIER, replace(NOTHING, interpolation="lanczos"), "interpolation is lanczos"),
        (CLASSIFIER, replace(NOTHING, mean=(1, 1, 1), std=(1, 0, 1)), "a std of 0 divides by zero"),
        (CLASSIFIER, replace(NOTHING, long_side=640, short_side=480), "classifiers take --input-size N"),
        (CLASSIFIER, replace(NOTHING, thresholds={"score_threshold": 0.3}), "--score-threshold is for detectors"),
        (DETECTOR, replace(NOTHING, fixed_size=(9000, 512)), "9000 px is too large; at most 8192 px"),
        (CLASSIFIER, replace(NOTHING, fixed_size=(640, 480)), "classifiers take --input-size N"),
        (DETECTOR, replace(NOTHING, crop=224), "take --input-size LONGxSHORT"),
        (DETECTOR, replace(NOTHING, thresholds={"score_threshold": 1.5}), "score_threshold is 1.5"),
    ],
)
def test_values_out_of_range_are_refused(base: Pipeline, parts: PipelineParts, why: str) -> None:
    """The error names the source and the value."""
    with pytest.raises(BundleInvalid, match=f"a source: .*{why}"):
        base.updated(parts)


def test_numbers_of_channels() -> None:
    """Lists of three or one finite numbers; fractions of 1 become grey levels, by the unit of the std."""
    assert three_numbers([0.5]) == three_numbers(0.5) == (0.5, 0.5, 0.5)
    assert three_numbers((1, 2, 3)) == (1.0, 2.0, 3.0)
    for wrong in (None, "123", [1, 2], [1, 2, "3"], [1, 2, float("nan")], [True, False, True]):
        assert three_numbers(wrong) is None
    assert grey_levels((0.5, 0.5, 0.5), (0.5, 0.25, 1)) == ((127.5, 127.5, 127.5), (127.5, 63.75, 255))
    assert grey_levels((0, 0, 0), (255, 255, 255)) == ((0, 0, 0), (255, 255, 255))
    assert grey_levels(None, None) == (None, None)
