from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.net.label_maps import LARGE_PIXELS, TILE_BYTES, _label_chunks, _label_tiles, _Pixels, label_maps
from model.types import Geometry, QueryParams, SegmentOutput, Size

INPUT = Size(24, 40)
PLAIN = QueryParams()
WITH_MAP = QueryParams(confidence_map=True)


def random_logits(classes: int) -> torch.Tensor:
    return torch.randn(1, classes, 6, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chunk_bytes", [0, 30_000, 1 << 20])
def test_chunks_of_classes_give_the_argmax_over_all(chunk_bytes: int) -> None:
    """Whatever the memory limit, the result equals resizing all classes and taking the argmax."""
    logits, geometry = random_logits(7), Geometry(Size(51, 33), INPUT)
    at_input = F.interpolate(logits, size=(24, 40), mode="bilinear")
    expected = F.interpolate(at_input, size=(51, 33), mode="bilinear").argmax(dim=1)[0].numpy()
    (output,) = label_maps(logits, INPUT, [geometry], [PLAIN], chunk_bytes)
    assert output.label_map.dtype == np.uint8
    np.testing.assert_array_equal(output.label_map, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 3, 15, 16, 17, 32, 70, 256, 300])
@pytest.mark.parametrize("chunk_bytes", [0, 1 << 20])
def test_channels_last_in_memory_gives_the_same_labels(dtype: torch.dtype, classes: int, chunk_bytes: int) -> None:
    """The memory format of the logits, which decides what is computed at a time, changes no label; padding included."""
    logits = torch.randn(4, classes, 6, 10, generator=torch.Generator().manual_seed(2)).to(dtype)
    sizes = (Size(51, 33), Size(20, 31)), (Size(9, 14), INPUT), (Size(1, 700), INPUT), (Size(701, 1), Size(24, 1))
    geometries = [Geometry(*pair) for pair in sizes]
    expected = label_maps(logits, INPUT, geometries, [WITH_MAP] * 4)
    found = label_maps(logits.to(memory_format=torch.channels_last), INPUT, geometries, [WITH_MAP] * 4, chunk_bytes)
    for one, other in zip(found, expected, strict=True):
        assert one.finite
        assert one.label_map.dtype == other.label_map.dtype
        np.testing.assert_array_equal(one.label_map, other.label_map)
        np.testing.assert_array_equal(one.areas, other.areas)
        np.testing.assert_allclose(one.confidences, other.confidences, atol=1e-6)
        assert one.confidence_map is not None
        assert other.confidence_map is not None
        assert np.abs(one.confidence_map.astype(int) - other.confidence_map).max() <= 1


def test_rows_are_labelled_the_same_way_by_any_number_of_threads() -> None:
    """A picture of many rows, which threads share, has the labels and the confidences that one thread gives it."""
    logits = random_logits(20).to(memory_format=torch.channels_last)
    outputs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        outputs += label_maps(logits, INPUT, [Geometry(Size(2000, 1500), INPUT)], [WITH_MAP])
    torch.set_num_threads(1)
    np.testing.assert_array_equal(outputs[0].label_map, outputs[1].label_map)
    np.testing.assert_array_equal(outputs[0].confidences, outputs[1].confidences)


def test_equal_logits_go_to_the_lowest_class() -> None:
    """As in argmax, within a chunk and across chunks, and where all classes are compared at a time."""
    (output,) = label_maps(torch.zeros(1, 3, 6, 10), INPUT, [Geometry(Size(5, 5), INPUT)], [PLAIN], chunk_bytes=0)
    assert not output.label_map.any()
    for classes in (3, 40):
        logits = torch.zeros(1, classes, 6, 10).to(memory_format=torch.channels_last)
        logits[:, :2] = -1.0
        (output,) = label_maps(logits, INPUT, [Geometry(Size(5, 5), INPUT)], [PLAIN])
        assert (output.label_map == 2).all()


def test_padding_is_cut_off_before_the_second_resize() -> None:
    """A picture in the left half of its input is labelled from the left half alone."""
    logits = torch.zeros(1, 2, 6, 10)
    logits[:, 1, :, 5:] = 9.0
    (half,) = label_maps(logits, INPUT, [Geometry(Size(48, 36), Size(24, 18))], [PLAIN])
    assert not half.label_map.any()
    (whole,) = label_maps(logits, INPUT, [Geometry(Size(48, 80), INPUT)], [PLAIN])
    assert whole.label_map[:, 44:].all()


def test_more_than_256_classes_need_uint16() -> None:
    """Class 299 does not wrap to class 43."""
    logits = torch.zeros(1, 300, 6, 10)
    logits[:, 299] = 1.0
    (output,) = label_maps(logits, INPUT, [Geometry(Size(4, 4), INPUT)], [PLAIN])
    assert output.label_map.dtype == np.uint16
    assert (output.label_map == 299).all()


@pytest.mark.parametrize("classes", [2, 70, 300])
@pytest.mark.parametrize("tile_bytes", [1 << 10, 1 << 14, 1 << 20])
@pytest.mark.parametrize("original", [Size(51, 33), Size(1, 700), Size(700, 1), Size(2, 3)])
def test_tiles_give_the_labels_of_the_whole(classes: int, tile_bytes: int, original: Size) -> None:
    """Large pictures are labelled in tiles: whatever their size, each pixel has the class that it has otherwise."""
    logits = random_logits(classes)
    whole, tiles = (
        _Pixels(original, classes, logits.device, WITH_MAP),
        _Pixels(original, classes, logits.device, WITH_MAP),
    )
    _label_chunks(whole, logits, INPUT, Size(20, 31), original, 1 << 20)
    channels_last = logits.contiguous(memory_format=torch.channels_last)
    _label_tiles(tiles, channels_last, INPUT, Size(20, 31), original, tile_bytes)
    expected, found = whole.output(), tiles.output()
    assert expected.finite
    assert found.finite
    assert found.label_map.dtype == expected.label_map.dtype
    np.testing.assert_array_equal(found.label_map, expected.label_map)
    np.testing.assert_array_equal(found.areas, expected.areas)
    np.testing.assert_allclose(found.confidences, expected.confidences, atol=1e-5)


def test_confidence_is_the_softmax_of_the_logits_at_each_pixel() -> None:
    """A class's confidence is the mean, over its pixels, of what the confidence map has, whatever the chunks."""
    logits, size = random_logits(7), Size(51, 33)
    at_input = F.interpolate(logits, size=(24, 40), mode="bilinear")
    probabilities, classes = F.interpolate(at_input, size=(51, 33), mode="bilinear").softmax(dim=1)[0].max(dim=0)
    for chunk_bytes in (0, 1 << 20):
        (output,) = label_maps(logits, INPUT, [Geometry(size, INPUT)], [WITH_MAP], chunk_bytes)
        assert output.confidence_map is not None
        np.testing.assert_allclose(output.confidence_map, 255 * probabilities.numpy(), atol=0.51)
        for index in range(7):
            pixels = probabilities[classes == index]
            assert output.areas[index] == len(pixels)
            np.testing.assert_allclose(output.confidences[index], pixels.mean() if len(pixels) else 0, rtol=1e-5)


@pytest.mark.parametrize("own", [0.5, 0.3])
@pytest.mark.parametrize("asked", [None, 0.001, 0.3, 0.8, 0.999])
def test_one_channel_is_compared_with_the_threshold(own: float, asked: float | None) -> None:
    """A pixel is of the class if the sigmoid of its logit is above the request's threshold, or the model's own; its
    confidence is the probability of its class, whatever the thresholds; in parts by classes and by pixels."""
    logit, size = 4 * random_logits(1), Size(51, 33)
    rest = torch.full_like(logit, math.log(own / (1 - own)))
    at_input = F.interpolate(logit, size=(24, 40), mode="bilinear")
    probability = F.interpolate(at_input, size=(51, 33), mode="bilinear").sigmoid()[0, 0].numpy()
    expected = probability > (own if asked is None else asked)
    params, geometry = QueryParams(confidence_map=True, threshold=asked), Geometry(size, INPUT)
    both = torch.cat((rest, logit), 1)
    for logits, chunk_bytes in (
        (both, 0),
        (both, 1 << 20),
        (both.to(memory_format=torch.channels_last), 0),
        (both.to(memory_format=torch.channels_last), 1 << 20),
    ):
        (output,) = label_maps(logits, INPUT, [geometry], [params], chunk_bytes, own)
        at_border = np.abs(probability - (own if asked is None else asked)) < 1e-5
        np.testing.assert_array_equal(output.label_map[~at_border], expected[~at_border])
        assert output.confidence_map is not None
        of_class = np.where(output.label_map, probability, 1 - probability)
        np.testing.assert_allclose(output.confidence_map, 255 * of_class, atol=0.53)


def filtered(params: QueryParams) -> SegmentOutput:
    (output,) = label_maps(random_logits(4), INPUT, [Geometry(Size(51, 33), INPUT)], [params])
    return output


def test_a_request_chooses_its_segments() -> None:
    """Classes that a request does not ask for, or with too few pixels, have no area; the label map shows them."""
    whole = filtered(PLAIN)
    chosen = filtered(QueryParams(classes=(1, 3)))
    assert chosen.areas.tolist() == [0, whole.areas[1], 0, whole.areas[3]]
    np.testing.assert_array_equal(chosen.label_map, whole.label_map)
    least = int(sorted(whole.areas)[2])
    assert filtered(QueryParams(min_area=least)).areas.tolist() == [area * (area >= least) for area in whole.areas]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("classes", [2, 40])
def test_a_logit_that_is_not_finite_spoils_the_picture(value: float, classes: int) -> None:
    """A single logit that is not finite shows, wherever it is, in each layout of the logits."""
    for layout in (torch.contiguous_format, torch.channels_last):
        for of, y, x in ((0, 0, 0), (1, 3, 4), (classes - 1, 5, 9)):
            logits = random_logits(classes).contiguous(memory_format=layout)
            logits[0, of, y, x] = value
            (output,) = label_maps(logits, INPUT, [Geometry(Size(51, 33), INPUT)], [PLAIN])
            assert not output.finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_tile_that_is_not_finite_spoils_the_picture(value: float) -> None:
    """A single logit that is not finite shows, whichever tile has it."""
    for y, x in ((0, 0), (3, 4), (5, 9)):
        logits = random_logits(2)
        logits[0, 1, y, x] = value
        pixels = _Pixels(Size(51, 33), 2, logits.device, PLAIN)
        _label_tiles(pixels, logits, INPUT, INPUT, Size(51, 33), 1 << 10)
        assert not pixels.output().finite


def test_a_large_picture_needs_memory_for_its_labels_and_little_more() -> None:
    """Labelling a picture of 20 million pixels in one row takes far less than 4 bytes a pixel beside the labels
    and the confidence map."""
    logits, geometry = random_logits(3), Geometry(Size(1, LARGE_PIXELS + 7), Size(1, 40))
    torch.set_num_threads(1)
    with torch.profiler.profile(profile_memory=True) as profile:
        (output,) = label_maps(logits, INPUT, [geometry], [WITH_MAP])
    assert output.label_map.shape == (1, LARGE_PIXELS + 7)
    live = largest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            largest = max(largest, live)
    assert 0 < largest < 2 * LARGE_PIXELS + 16 * TILE_BYTES
