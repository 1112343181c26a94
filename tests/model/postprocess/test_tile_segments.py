from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from model.decode import Picture
from model.net.label_maps import _with_threshold, label_maps, logits_output
from model.postprocess.tile_segments import blend_segments
from model.spec import KeepRatioSpec
from model.tiles import TiledInput, Tiling, plan_tiles, prepare_tiles
from model.types import LogitsOutput, QueryParams, Size

SPEC = KeepRatioSpec(long_side=96, short_side=64, pad_multiple=32)
WITH_LEVELS = QueryParams(confidence_map=True)


def tiles_of(picture: Size, tiling: Tiling) -> TiledInput:
    pixels = np.zeros((picture.height, picture.width, 3), np.uint8)
    grid = plan_tiles(picture, tiling, SPEC, 1000)
    return prepare_tiles(Picture(pixels, picture), SPEC, grid, whole=False, before_each=lambda: None)


def cells_of(tiled: TiledInput) -> tuple[int, int]:
    high, wide = tiled.inputs[0].pixels.shape[:2]
    return high // 4, wide // 4


def smooth(classes: int, cells: tuple[int, int], seed: int = 1) -> torch.Tensor:
    """Logits (1, classes, h, w) with connected areas of each class."""
    coarse = torch.randn(1, classes, 4, 5, generator=torch.Generator().manual_seed(seed)) * 4
    return torch.nn.functional.interpolate(coarse, size=cells, mode="bicubic")


@pytest.mark.parametrize("classes", [3, 20])
@pytest.mark.parametrize("picture", [Size(230, 307), Size(64, 96), Size(301, 150)])
def test_a_single_window_is_labelled_as_the_network_does_it(picture: Size, classes: int) -> None:
    """Labels and confidences are those of the postprocessing on the device; float16 and bounds on classes are rounding.

    Of 20 classes a cell has the eight best.
    """
    tiled = tiles_of(picture, Tiling(picture))
    logits = smooth(classes, cells_of(tiled))
    (expected,) = label_maps(logits, Size(*tiled.inputs[0].pixels.shape[:2]), [tiled.inputs[0].geometry], [WITH_LEVELS])
    found = blend_segments([logits_output(logits)], tiled, classes, WITH_LEVELS)
    assert (found.label_map != expected.label_map).mean() < 0.005
    assert found.confidence_map is not None
    assert expected.confidence_map is not None
    assert np.abs(found.confidence_map.astype(int) - expected.confidence_map).mean() < 2
    np.testing.assert_allclose(found.confidences, expected.confidences, atol=0.01)
    assert np.array_equal(found.areas, np.bincount(found.label_map.ravel(), minlength=classes))


@pytest.mark.parametrize("asked", [None, 0.8])
def test_one_channel_has_its_threshold_in_windows_too(asked: float | None) -> None:
    """Labels are decided by the threshold that applies; confidences are probabilities without it, as for a whole
    picture."""
    own, picture = 0.3, Size(64, 96)
    tiled = tiles_of(picture, Tiling(picture))
    logits = smooth(2, cells_of(tiled))
    params = QueryParams(confidence_map=True, threshold=asked)
    size, geometry = Size(*tiled.inputs[0].pixels.shape[:2]), tiled.inputs[0].geometry
    (expected,) = label_maps(logits, size, [geometry], [params], threshold=own)
    sent = logits_output(_with_threshold(logits, params, own)[0])
    found = blend_segments([sent], tiled, 2, params, threshold=own)
    assert (found.label_map != expected.label_map).mean() < 0.005
    assert found.confidence_map is not None
    assert expected.confidence_map is not None
    assert np.abs(found.confidence_map.astype(int) - expected.confidence_map).mean() < 2
    (plain,) = label_maps(logits, size, [geometry], [WITH_LEVELS])
    assert np.abs(plain.confidences - expected.confidences).max() > 0.05


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_windows_that_agree_have_no_seams(overlap: float) -> None:
    """Windows cut from one field of logits give the labels of the field, whatever their number and overlap."""
    picture = Size(256, 384)
    tiled = tiles_of(picture, Tiling(Size(64, 96), overlap))
    rows, columns = np.mgrid[0 : picture.height, 0 : picture.width] + 0.5
    outputs = []
    for window in tiled.windows():
        high, wide = cells_of(tiled)
        y = window.top + (np.arange(high) + 0.5) * window.height / high
        x = window.left + (np.arange(wide) + 0.5) * window.width / wide
        outputs.append(field(y[:, None], x[None]))
    found = blend_segments(outputs, tiled, 3, WITH_LEVELS)
    expected = np.argmax(values(rows, columns), axis=0)
    assert (found.label_map != expected).mean() < 0.02
    # Between a window's outermost cells and its edge, its values are constant: no step is larger than that.
    assert found.confidence_map is not None
    steps = np.abs(np.diff(found.confidence_map.astype(int), axis=1))
    assert steps.max() <= 12


def values(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Logits of three classes at points of the picture, in slow waves."""
    return np.stack(np.broadcast_arrays(2 * np.sin(x / 60), 2 * np.cos(y / 50), np.sin((x + y) / 70)))


def field(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> LogitsOutput:
    logits = values(y, x).astype(np.float16)
    classes = np.broadcast_to(np.arange(3, dtype=np.uint8)[:, None, None], logits.shape)
    return LogitsOutput(logits, classes)


def certain(tiled: TiledInput, index: int, logit: float = 4.0) -> LogitsOutput:
    """A window that is one class, of three."""
    logits = np.zeros((3, *cells_of(tiled)), np.float16)
    logits[index] = logit
    classes = np.broadcast_to(np.arange(3, dtype=np.uint8)[:, None, None], logits.shape)
    return LogitsOutput(logits, classes)


def test_windows_that_disagree_meet_in_the_middle() -> None:
    """Weights fall to a window's edge: the nearer window decides, and between both nothing is certain."""
    tiled = tiles_of(Size(64, 160), Tiling(Size(64, 96), 1 / 3))
    assert tiled.grid.lefts == (0, 64)
    found = blend_segments([certain(tiled, 1), certain(tiled, 2)], tiled, 3, WITH_LEVELS)
    assert (found.label_map[:, :80] == 1).all()
    assert (found.label_map[:, 80:] == 2).all()
    assert found.confidence_map is not None
    levels = found.confidence_map[30].astype(int)
    assert (np.diff(levels[60:79]) <= 0).all()
    assert levels[79] < 130 < 200 < levels[60]
    assert np.array_equal(levels, levels[::-1])


def test_the_surer_window_decides_more() -> None:
    """Logits are blended, not labels: a window that is sure reaches further into the overlap."""
    tiled = tiles_of(Size(64, 160), Tiling(Size(64, 96), 1 / 3))
    found = blend_segments([certain(tiled, 1, 8.0), certain(tiled, 2, 2.0)], tiled, 3, QueryParams())
    border = int((found.label_map[10] == 1).sum())
    assert 85 <= border <= 94


def test_only_what_is_asked_for_is_returned() -> None:
    """`classes` and `min_area` choose among the areas of the whole picture; the label map has all."""
    tiled = tiles_of(Size(64, 160), Tiling(Size(64, 96), 1 / 3))
    outputs = [certain(tiled, 1), certain(tiled, 2)]
    assert blend_segments(outputs, tiled, 3, QueryParams(classes=(2,))).areas.tolist() == [0, 0, 64 * 80]
    assert blend_segments(outputs, tiled, 3, QueryParams(min_area=64 * 80 + 1)).areas.tolist() == [0, 0, 0]


@pytest.mark.parametrize("asked", [None, 0.2])
def test_the_threshold_of_one_channel_moves_the_border_and_not_the_confidence(asked: float | None) -> None:
    """Windows of a network with one output channel are labelled with its threshold, or the request's, as alone."""
    picture, threshold = Size(64, 96), 0.7
    tiled = tiles_of(picture, Tiling(picture))
    params = QueryParams(confidence_map=True, threshold=asked)
    applied = threshold if asked is None else asked
    channel = smooth(1, cells_of(tiled))
    moved = torch.full_like(channel, float(np.log(threshold / (1 - threshold))))
    logits = torch.cat((moved, channel), dim=1)
    (expected,) = label_maps(logits, picture, [tiled.inputs[0].geometry], [params], threshold=threshold)
    contained = torch.cat((torch.full_like(channel, float(np.log(applied / (1 - applied)))), channel), dim=1)
    found = blend_segments([logits_output(contained)], tiled, 2, params, threshold=threshold)
    assert (found.label_map != expected.label_map).mean() < 0.005
    np.testing.assert_allclose(found.confidences, expected.confidences, atol=0.005)


def test_logits_that_are_not_finite_are_an_error_of_the_output() -> None:
    """NaN and infinity show, also where float16 would hide what is too large."""
    logits = torch.zeros(1, 3, 4, 4)
    assert logits_output(logits + 1e9).finite
    assert np.isfinite(logits_output(logits + 1e9).logits).all()
    for wrong in (torch.nan, torch.inf):
        logits[0, 1, 2, 2] = wrong
        assert not logits_output(logits).finite
