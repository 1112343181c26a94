from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.parity import VARIANTS, Variant
from benchmarks.parity_agreement import agreement, match
from benchmarks.parity_models import FAMILIES, calibrate
from benchmarks.parity_pictures import read_pictures, varied_reference
from model.net.cpu.int8 import int8_accelerates
from model.net.network import build_network
from model.net.semantic_fpn import SemanticFPN
from model.predictor import Optimisations
from model.reference import REFERENCE_PICTURE
from model.types import ClassifyOutput, DetectOutput, Size
from tests.model.batches import segment_output
from tests.model.tiny_models import ARCHITECTURES, tiny_bundle

ROOT = Path(__file__).parents[2]
SIZE = Size(80, 100)
SIZES = (SIZE, SIZE)

# pycocotools' own, with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def labels(*probabilities: float) -> ClassifyOutput:
    scores = np.array(probabilities, np.float32)
    indices = np.argsort(-scores, kind="stable")
    return ClassifyOutput(indices, scores[indices])


def boxes(*rows: tuple[float, float, float, float, float, int], mask: float | None = None) -> DetectOutput:
    """Rows of xmin, ymin, xmax, ymax, score, class; `mask` is the logit of the right half, the left is set."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    logits = None
    if mask is not None:
        logits = np.full((len(rows), 28, 28), 5.0, np.float32)
        logits[:, :, 14:] = mask
    return DetectOutput(table[:, :4].copy(), table[:, 4].copy(), table[:, 5].astype(np.int64), logits)


TWO = boxes((10, 10, 50, 50, 0.9, 0), (20, 30, 90, 70, 0.6, 1), mask=5.0)
ONE = boxes((0, 0, 40, 60, 0.8, 0), mask=5.0)


def test_equal_answers_agree_fully() -> None:
    """Of equal answers every share is 1 and every difference 0."""
    classified = agreement([labels(0.2, 0.8), labels(0.7, 0.3)], [labels(0.2, 0.8), labels(0.7, 0.3)], SIZES)
    assert (classified.top1, classified.probability_difference) == (1.0, 0.0)
    detected = agreement([TWO, ONE], [TWO, ONE], SIZES)
    assert detected.box_ap == pytest.approx(1.0)
    assert detected.mask_ap == pytest.approx(1.0)
    assert (detected.matched, detected.box_iou, detected.score_difference) == (1.0, 1.0, 0.0)
    segments = segment_output(np.arange(16, dtype=np.uint8).reshape(4, 4), 16)
    assert agreement([segments], [segments], SIZES[:1]).pixels == 1.0


def test_a_wrong_class_is_counted_by_pictures() -> None:
    """One of four best classes differs; the difference of probabilities is by class, not by rank."""
    truth = [labels(0.1, 0.6, 0.3)] * 4
    found = agreement(truth, [*truth[:3], labels(0.1, 0.4, 0.5)], SIZES * 2)
    assert found.top1 == 0.75
    assert found.probability_difference == pytest.approx(0.2)


def test_a_shifted_box_is_right_up_to_its_overlap() -> None:
    """Shifted by 4 of 40 pixels the IoU is 36/44: right at seven of the ten thresholds, the other box at all."""
    shifted = boxes((14, 10, 54, 50, 0.7, 0), (20, 30, 90, 70, 0.6, 1))
    found = agreement([boxes((10, 10, 50, 50, 0.9, 0), (20, 30, 90, 70, 0.6, 1))], [shifted], SIZES[:1])
    assert found.box_ap == pytest.approx((0.7 + 1.0) / 2)
    assert found.matched == 1.0
    assert found.box_iou == pytest.approx((36 / 44 + 1) / 2)
    assert found.score_difference == pytest.approx(0.2)
    assert found.mask_ap is None


def test_a_box_of_another_class_or_far_away_has_no_partner() -> None:
    """Such detections count on both sides; of two candidates the nearer is the partner, and only once."""
    other_class = boxes((10, 10, 50, 50, 0.9, 1), (20, 30, 90, 70, 0.6, 1))
    found = agreement([TWO], [other_class], SIZES[:1])
    assert found.matched == 0.5
    assert found.mask_ap is None
    assert found.box_ap is not None
    assert found.box_ap < 0.5
    pair = boxes((10, 10, 50, 50, 0.9, 0), (10, 10, 50, 49, 0.8, 0))
    assert [(first, second) for first, second, _ in match(pair, boxes((10, 10, 50, 49, 0.9, 0)))] == [(0, 0)]
    near = boxes((10, 10, 50, 45, 0.9, 0), (10, 10, 50, 49, 0.8, 0))
    assert [(first, second) for first, second, _ in match(pair, near)] == [(0, 1), (1, 0)]


def test_half_a_mask_lowers_only_the_mask_figure() -> None:
    """Masks of IoU about one half are right at one threshold at most, while their boxes are the same."""
    found = agreement([ONE], [boxes((0, 0, 40, 60, 0.8, 0), mask=-5.0)], SIZES[:1])
    assert found.box_ap == pytest.approx(1.0)
    assert found.mask_ap is not None
    assert found.mask_ap <= 0.1 + 1e-6


def test_an_empty_mask_agrees_with_an_empty_mask() -> None:
    """Instances without a pixel cost nothing where both have none, and are missed where only the truth has some."""
    mixed, logits = boxes((0, 0, 40, 60, 0.8, 0), (50, 0, 90, 60, 0.7, 0), mask=5.0), np.full((2, 28, 28), 5.0)
    logits[1] = -5.0
    half = DetectOutput(mixed.boxes, mixed.scores, mixed.classes, logits.astype(np.float32))
    assert agreement([half], [half], SIZES[:1]).mask_ap == pytest.approx(1.0)
    lost = agreement([mixed], [half], SIZES[:1])
    assert lost.box_ap == pytest.approx(1.0)
    assert lost.mask_ap == pytest.approx(51 / 101)


def test_answers_without_detections_are_compared() -> None:
    """A truth without objects loses nothing; an answer without any of the expected objects loses all."""
    none = boxes()
    assert agreement([none], [none], SIZES[:1]).box_ap is None
    assert agreement([none], [none], SIZES[:1]).matched is None
    lost = agreement([TWO], [none], SIZES[:1])
    assert (lost.box_ap, lost.matched, lost.box_iou) == (0.0, 0.0, None)
    assert agreement([none], [TWO], SIZES[:1]).matched == 0.0


def test_pixels_of_all_pictures_count_alike() -> None:
    """The agreement is a share of all pixels, not a mean over pictures of different sizes."""
    small, large = np.zeros((1, 4), np.uint8), np.zeros((3, 4), np.uint8)
    changed = small.copy()
    changed[0, :2] = 1
    truth = [segment_output(small, 16), segment_output(large, 16)]
    found = [segment_output(changed, 16), segment_output(large, 16)]
    assert agreement(truth, found, (Size(1, 4), Size(3, 4))).pixels == 14 / 16


def test_answers_of_two_kinds_are_refused() -> None:
    """A comparison that means nothing is an error, not a figure."""
    with pytest.raises(TypeError, match="ClassifyOutput"):
        agreement([labels(1.0)], [TWO], SIZES[:1])


def test_a_variant_is_read_from_its_parts() -> None:
    """Each part changes one thing of plain fp32, and an unknown one is named."""
    assert Variant.parse("fp32").optimisations == Optimisations(channels_last=False)
    both = Variant.parse("bf16+channels-last+folded")
    assert (both.precision, both.optimisations) == ("bf16", Optimisations(channels_last=True, folded=True))
    assert Variant.parse("compiled").optimisations == Optimisations(channels_last=False, compiled=True)
    assert Variant.parse("int8").precision == "int8"
    with pytest.raises(ValueError, match=r"'int8' is none of .*; int8 stands alone"):
        Variant.parse("folded+int8")


def test_pictures_are_spread_over_a_folder(tmp_path: Path) -> None:
    """A sorted folder gives pictures of its beginning, middle and end, and files that are none are left out."""
    for number in range(6):
        (tmp_path / f"{number}.jpg").symlink_to(REFERENCE_PICTURE)
    (tmp_path / "list.txt").write_text("no picture")
    assert len(read_pictures(tmp_path, 64)) == 6
    assert len(read_pictures(tmp_path, 4)) == 4


def test_the_default_pictures_are_always_the_same_and_all_different() -> None:
    """Two runs compare the same pictures, and no picture is compared twice."""
    first, second = varied_reference(), varied_reference()
    assert all(np.array_equal(one.pixels, other.pixels) for one, other in zip(first, second, strict=True))
    assert len({one.pixels.tobytes() for one in first}) == len(first) == 12


def test_calibrated_weights_give_lively_answers() -> None:
    """A random network's logits are as wide as asked for, and more than a class or two wins pixels."""
    torch.manual_seed(0)
    network = build_network(ARCHITECTURES["semantic_fpn"], 20).eval()
    assert isinstance(network, SemanticFPN)
    calibrate(network)
    with torch.inference_mode():
        logits = network(torch.randn(1, 3, 64, 64))
    assert torch.isfinite(logits).all()
    assert len(logits.argmax(dim=1).unique()) > 5
    assert set(FAMILIES) == set(ARCHITECTURES)


def test_the_command_prints_a_row_for_each_variant(tmp_path: Path) -> None:
    """From a store to figures for every variant; one that this machine cannot run is listed, with a reason."""
    tiny_bundle(tmp_path / "store", "mask_rcnn")
    (tmp_path / "pictures").mkdir()
    for name in ("cat.jpg", "same.jpg"):
        (tmp_path / "pictures" / name).symlink_to(REFERENCE_PICTURE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.parity", "--json", "--device", "cpu", "--model", "tiny"),
            *("--models-dir", tmp_path / "store", "--pictures", tmp_path / "pictures"),
        ],
        cwd=ROOT,
        env={**os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    rows = {row["variant"]: row for row in answer["rows"]}
    names = ["fp32", *VARIANTS.split(",")]
    assert list(rows) == names
    assert answer["pictures"] == 2
    assert "compiler" in rows["compiled"]["not_supported"]
    assert rows["compiled"]["ms_per_picture"] is None
    if not int8_accelerates():
        assert "AVX-512 VNNI" in rows.pop("int8")["not_supported"]
    for name in {"channels-last", "folded", "bf16", "int8"} & set(rows):
        assert rows[name]["not_supported"] is None
        assert rows[name]["ms_per_picture"] > 0
        assert all(rows[name][figure] is not None for figure in ("box_ap", "mask_ap", "box_iou", "score_difference"))
    assert rows["folded"]["box_ap"] > 0.99
    assert rows["folded"]["mask_ap"] > 0.99
