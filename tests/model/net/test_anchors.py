from __future__ import annotations

import pytest
import torch

from model.net.anchors import RETINANET_ANCHORS, RPN_ANCHORS, AnchorSpec
from tests import goldens

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
    """The first cell's centre is the origin; x runs before y."""
    anchors = RPN_ANCHORS.level_anchors(1, (2, 3), CPU)
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2)[:: RPN_ANCHORS.per_position]
    torch.testing.assert_close(
        centres, torch.tensor([[0.0, 0.0], [8.0, 0.0], [16.0, 0.0], [0.0, 8.0], [8.0, 8.0], [16.0, 8.0]])
    )
    torch.testing.assert_close(anchors[4], torch.tensor([8.0 - 32, -32.0, 8.0 + 32, 32.0]))


@goldens.requires_goldens
@pytest.mark.parametrize(("name", "spec"), [("retinanet", RETINANET_ANCHORS), ("rpn", RPN_ANCHORS)])
def test_all_anchors_are_the_toolboxes(name: str, spec: AnchorSpec) -> None:
    """Every shape of every level, and a grid of them, equals what the authors' models use."""
    golden = goldens.load("anchors.json")[name]
    assert [[stride, stride] for stride in spec.strides] == golden["strides"]
    for level, expected in enumerate(golden["base_anchors"]):
        torch.testing.assert_close(spec.shapes(level, CPU), torch.tensor(expected), rtol=0, atol=1e-4)
    grid = spec.level_anchors(0, (2, 3), CPU)
    torch.testing.assert_close(grid, torch.tensor(golden["level0_grid_of_2x3"]), rtol=0, atol=1e-4)
