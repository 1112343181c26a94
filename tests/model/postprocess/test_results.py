from __future__ import annotations

import numpy as np
import pytest

from model.bundle import BundleConfig, Source
from model.families.classifier import ClassifierSpec
from model.families.convmlp import CONVMLP_SIZES
from model.families.mask_rcnn import MaskRCNNSpec
from model.families.registry import Architecture
from model.families.semantic_fpn import SemanticFPNSpec
from model.postprocess.results import postprocess
from model.reference import ClassifyReference, DetectReference, ReferenceAnswer, SegmentReference
from model.spec import CenterCropSpec, ClassifyPostSpec, DetectPostSpec, KeepRatioSpec, Postprocessing, SegmentPostSpec
from model.types import (
    Box,
    ClassifyOutput,
    ClassifyResult,
    DetectOutput,
    DetectResult,
    Label,
    RawOutput,
    Segment,
    SegmentOutput,
    SegmentResult,
    Size,
    Task,
)
from tests.model.batches import segment_output

SIZE = Size(3, 4)
BACKBONE = CONVMLP_SIZES["s"]
PARTS: dict[Task, tuple[Architecture, Postprocessing, ReferenceAnswer]] = {
    Task.CLASSIFY: (ClassifierSpec(backbone=BACKBONE), ClassifyPostSpec(), ClassifyReference(labels=())),
    Task.DETECT: (MaskRCNNSpec(backbone=BACKBONE), DetectPostSpec(mask_threshold=0.4), DetectReference(detections=())),
    Task.SEGMENT: (SemanticFPNSpec(backbone=BACKBONE), SegmentPostSpec(), SegmentReference(grid=())),
}
OUTPUTS: dict[Task, RawOutput] = {
    Task.CLASSIFY: ClassifyOutput(np.array([2, 0]), np.array([0.75, 0.25], np.float32)),
    Task.DETECT: DetectOutput(
        np.array([[0.5, 1, 2, 3], [1, 1, 4, 2]], np.float32),
        np.array([0.75, 0.5], np.float32),
        np.array([1, 2]),
        None,
    ),
    Task.SEGMENT: segment_output(np.array([[0, 0, 2, 2], [0, 2, 2, 2], [2, 2, 2, 2]], np.uint8), 3),
}


def config(task: Task) -> BundleConfig:
    architecture, postprocessing, reference = PARTS[task]
    return BundleConfig(
        name="model",
        task=task,
        architecture=architecture,
        labels=("ant", "bee", "cat"),
        preprocessing=CenterCropSpec() if task is Task.CLASSIFY else KeepRatioSpec(long_side=64, short_side=64),
        postprocessing=postprocessing,
        precision="fp32",
        source=Source(description="none", url="none", licence="none", attribution="none"),
        reference=reference,
        weights_sha256="0" * 64,
    )


def test_labels_get_their_names_in_the_order_of_their_scores() -> None:
    """A classifier's rows become labels with the bundle's names, in their order."""
    result = postprocess(OUTPUTS[Task.CLASSIFY], config(Task.CLASSIFY), SIZE)
    assert isinstance(result, ClassifyResult)
    assert result.size == SIZE
    assert result.labels == (Label("cat", 2, 0.75), Label("ant", 0, 0.25))


def test_detections_get_their_names_and_boxes() -> None:
    """Each row becomes a detection; without mask logits it has no mask."""
    result = postprocess(OUTPUTS[Task.DETECT], config(Task.DETECT), SIZE)
    assert isinstance(result, DetectResult)
    assert [(one.label, one.index, one.score, one.mask) for one in result.detections] == [
        ("bee", 1, 0.75, None),
        ("cat", 2, 0.5, None),
    ]
    assert result.detections[0].box == Box(0.5, 1.0, 2.0, 3.0)


def test_masks_keep_their_own_logits_and_the_bundles_threshold() -> None:
    """Detection i has row i's logits, not pasted, and the bundle's threshold."""
    raw = OUTPUTS[Task.DETECT]
    assert isinstance(raw, DetectOutput)
    logits = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    result = postprocess(DetectOutput(raw.boxes, raw.scores, raw.classes, logits), config(Task.DETECT), SIZE)
    assert isinstance(result, DetectResult)
    for row, detection in enumerate(result.detections):
        assert detection.mask is not None
        assert detection.mask.threshold == 0.4
        np.testing.assert_array_equal(detection.mask.logits, logits[row])


def test_no_detections_are_an_answer() -> None:
    """Without detections the result is empty."""
    raw = DetectOutput(
        np.zeros((0, 4), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int64),
        np.zeros((0, 28, 28), np.float32),
    )
    assert postprocess(raw, config(Task.DETECT), SIZE) == DetectResult(SIZE, ())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_segments_are_the_classes_present_by_falling_area(dtype: type) -> None:
    """Each class with a pixel is one segment with its pixel count; the largest comes first."""
    raw = OUTPUTS[Task.SEGMENT]
    assert isinstance(raw, SegmentOutput)
    result = postprocess(segment_output(raw.label_map.astype(dtype), 3), config(Task.SEGMENT), SIZE)
    assert isinstance(result, SegmentResult)
    third, whole = np.float32(0.3).item(), np.float32(0.9).item()
    assert result.segments == (Segment("cat", 2, 9, third), Segment("ant", 0, 3, whole))


def test_segments_of_equal_area_come_by_index() -> None:
    """Ties are ordered by class index, so results are deterministic."""
    result = postprocess(segment_output(np.array([[2, 0, 1, 1]], np.uint8), 3), config(Task.SEGMENT), Size(1, 4))
    assert isinstance(result, SegmentResult)
    assert [one.index for one in result.segments] == [1, 0, 2]


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("other", Task)
def test_an_output_of_another_task_is_a_programming_error(task: Task, other: Task) -> None:
    """Postprocessing refuses outputs of another task."""
    if task == other:
        postprocess(OUTPUTS[task], config(task), SIZE)
        return
    with pytest.raises(TypeError, match="model model is for"):
        postprocess(OUTPUTS[other], config(task), SIZE)
