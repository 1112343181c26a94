from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.net.boxes import (
    RETINANET_ANCHORS,
    RPN_ANCHORS,
    AnchorSpec,
    clip_boxes,
    decode_deltas,
    encode_deltas,
    iou_matrix,
)
from tests import goldens

coordinate = st.floats(-500, 500, width=32)
side = st.floats(1, 500, width=32)


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    x, y, width, height = draw(coordinate), draw(coordinate), draw(side), draw(side)
    return [x, y, x + width, y + height]


@given(anchor=boxes(), box=boxes(), stds=st.sampled_from([(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)]))
def test_decoding_inverts_encoding(
    anchor: list[float], box: list[float], stds: tuple[float, float, float, float]
) -> None:
    """Deltas give their box back, except where the size ratio is limited."""
    anchors, targets = torch.tensor([anchor], dtype=torch.float64), torch.tensor([box], dtype=torch.float64)
    ratios = (targets[:, 2:] - targets[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    decoded = decode_deltas(anchors, encode_deltas(anchors, targets, stds), stds)
    if bool((ratios.log().abs() < math.log(1000 / 16)).all()):
        torch.testing.assert_close(decoded, targets, rtol=1e-4, atol=1e-3)
    else:
        limited = (decoded[:, 2:] - decoded[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
        torch.testing.assert_close(limited, ratios.clamp(16 / 1000, 1000 / 16), rtol=1e-4, atol=1e-6)


def test_deltas_shift_by_anchor_size_and_scale_by_exponential() -> None:
    """dx, dy are in anchor sizes; dw, dh are natural logarithms; each is multiplied by its std."""
    anchors = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    decoded = decode_deltas(anchors, torch.tensor([[1.0, -1.0, math.log(2) * 5, 0.0]]), (0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(decoded, torch.tensor([[2.0, 16.0, 42.0, 56.0]]))


def test_iou_of_hand_computed_boxes() -> None:
    """Overlap by a quarter, identity, touching edges, no area."""
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    others = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0], [2.0, 0.0, 4.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert iou_matrix(box, others)[0].tolist() == pytest.approx([1 / 7, 1.0, 0.0, 0.0])


def test_two_boxes_without_area_pass_no_threshold() -> None:
    """0/0 must not suppress a detection."""
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert not bool((iou_matrix(point, point) > 0.0).any())


def test_clipping_uses_each_rows_own_limits() -> None:
    """In a batch, each picture's boxes are clipped to that picture."""
    clipped = clip_boxes(
        torch.tensor([[[-5.0, 3.0, 50.0, 60.0]], [[-5.0, 3.0, 50.0, 60.0]]]),
        torch.tensor([[[40.0, 20.0, 40.0, 20.0]], [[45.0, 100.0, 45.0, 100.0]]]),
    )
    assert clipped.tolist() == [[[0.0, 3.0, 40.0, 20.0]], [[0.0, 3.0, 45.0, 60.0]]]


CPU = torch.device("cpu")


def test_retinanet_has_ratio_outer_and_scale_inner() -> None:
    """The order of anchors is the order of the head's output channels."""
    shapes = RETINANET_ANCHORS.shapes(0, CPU)
    expected = [
        [-22.627417, -11.313708, 22.627417, 11.313708],
        [-28.508759, -14.254379, 28.508759, 14.254379],
        [-35.918785, -17.959393, 35.918785, 17.959393],
        [-16.0, -16.0, 16.0, 16.0],
    ]
    torch.testing.assert_close(shapes[:4], torch.tensor(expected))
    assert len(shapes) == RETINANET_ANCHORS.per_position == 9


def test_anchors_are_centred_at_multiples_of_the_stride_row_by_row() -> None:
    """The first cell's centre is the origin; x varies faster than y."""
    anchors = RPN_ANCHORS.level_anchors(1, (2, 3), CPU)
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2)[:: RPN_ANCHORS.per_position]
    torch.testing.assert_close(
        centres, torch.tensor([[0.0, 0.0], [8.0, 0.0], [16.0, 0.0], [0.0, 8.0], [8.0, 8.0], [16.0, 8.0]])
    )
    torch.testing.assert_close(anchors[4], torch.tensor([8.0 - 32, -32.0, 8.0 + 32, 32.0]))


@goldens.requires_goldens
@pytest.mark.parametrize(("name", "spec"), [("retinanet", RETINANET_ANCHORS), ("rpn", RPN_ANCHORS)])
def test_all_anchors_are_the_toolboxes(name: str, spec: AnchorSpec) -> None:
    """Each level's anchor shapes, and a grid of them, equal those of the authors' models."""
    golden = goldens.load("anchors.json")[name]
    assert [[stride, stride] for stride in spec.strides] == golden["strides"]
    for level, expected in enumerate(golden["base_anchors"]):
        torch.testing.assert_close(spec.shapes(level, CPU), torch.tensor(expected), rtol=0, atol=1e-4)
    grid = spec.level_anchors(0, (2, 3), CPU)
    torch.testing.assert_close(grid, torch.tensor(golden["level0_grid_of_2x3"]), rtol=0, atol=1e-4)
