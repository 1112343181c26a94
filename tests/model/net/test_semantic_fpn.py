from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.net.semantic_fpn import LARGE_PIXELS, TILE_BYTES, _label_chunks, _label_tiles, label_maps
from model.types import Geometry, Size

INPUT = Size(24, 40)


def random_logits(classes: int) -> torch.Tensor:
    return torch.randn(1, classes, 6, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("chunk_bytes", [0, 30_000, 1 << 20])
def test_chunks_of_classes_give_the_argmax_over_all(chunk_bytes: int) -> None:
    """Whatever the memory limit, the result equals resizing all classes and taking the argmax."""
    logits, geometry = random_logits(7), Geometry(Size(51, 33), INPUT)
    at_input = F.interpolate(logits, size=(24, 40), mode="bilinear")
    expected = F.interpolate(at_input, size=(51, 33), mode="bilinear").argmax(dim=1)[0].numpy()
    (output,) = label_maps(logits, INPUT, [geometry], chunk_bytes)
    assert output.label_map.dtype == np.uint8
    np.testing.assert_array_equal(output.label_map, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fitting", [1, 7, 16, 40, 100])
def test_channels_last_in_memory_gives_the_same_labels(dtype: torch.dtype, fitting: int) -> None:
    """The memory format of the logits changes no label, padding and chunks included."""
    logits = torch.randn(2, 70, 6, 10, generator=torch.Generator().manual_seed(2)).to(dtype)
    geometries = [Geometry(Size(51, 33), Size(20, 31)), Geometry(Size(9, 14), INPUT)]
    chunk_bytes = fitting * 4 * (24 * 40 + 51 * 33)
    expected = label_maps(logits, INPUT, geometries)
    found = label_maps(logits.to(memory_format=torch.channels_last), INPUT, geometries, chunk_bytes)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.label_map, other.label_map)


def test_equal_logits_go_to_the_lowest_class() -> None:
    """As in argmax, within a chunk and across chunks."""
    (output,) = label_maps(torch.zeros(1, 3, 6, 10), INPUT, [Geometry(Size(5, 5), INPUT)], chunk_bytes=0)
    assert not output.label_map.any()


def test_padding_is_cut_off_before_the_second_resize() -> None:
    """A picture in the left half of its input is labelled from the left half alone."""
    logits = torch.zeros(1, 2, 6, 10)
    logits[:, 1, :, 5:] = 9.0
    (half,) = label_maps(logits, INPUT, [Geometry(Size(48, 36), Size(24, 18))])
    assert not half.label_map.any()
    (whole,) = label_maps(logits, INPUT, [Geometry(Size(48, 80), INPUT)])
    assert whole.label_map[:, 44:].all()


def test_more_than_256_classes_need_uint16() -> None:
    """Class 299 does not wrap to class 43."""
    logits = torch.zeros(1, 300, 6, 10)
    logits[:, 299] = 1.0
    (output,) = label_maps(logits, INPUT, [Geometry(Size(4, 4), INPUT)])
    assert output.label_map.dtype == np.uint16
    assert (output.label_map == 299).all()


@pytest.mark.parametrize("classes", [2, 70, 300])
@pytest.mark.parametrize("tile_bytes", [1 << 10, 1 << 14, 1 << 20])
@pytest.mark.parametrize("original", [Size(51, 33), Size(1, 700), Size(700, 1), Size(2, 3)])
def test_tiles_give_the_labels_of_the_whole(classes: int, tile_bytes: int, original: Size) -> None:
    """Large pictures are labelled in tiles: whatever their size, each pixel has the class that it has otherwise."""
    logits = random_logits(classes)
    whole, finite = _label_chunks(logits, INPUT, Size(20, 31), original, 1 << 20)
    tiles, also = _label_tiles(logits, INPUT, Size(20, 31), original, tile_bytes)
    assert finite
    assert also
    assert tiles.dtype == whole.dtype
    np.testing.assert_array_equal(tiles.numpy(), whole.numpy())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_tile_that_is_not_finite_spoils_the_picture(value: float) -> None:
    """A single logit that is not finite shows, whichever tile has it."""
    for y, x in ((0, 0), (3, 4), (5, 9)):
        logits = random_logits(2)
        logits[0, 1, y, x] = value
        _, finite = _label_tiles(logits, INPUT, INPUT, Size(51, 33), 1 << 10)
        assert not finite


def test_a_large_picture_needs_memory_for_its_labels_and_little_more() -> None:
    """Labelling a picture of 20 million pixels in one row takes far less than 4 bytes a pixel beside the labels."""
    logits, geometry = random_logits(3), Geometry(Size(1, LARGE_PIXELS + 7), Size(1, 40))
    torch.set_num_threads(1)
    with torch.profiler.profile(profile_memory=True) as profile:
        (output,) = label_maps(logits, INPUT, [geometry])
    assert output.label_map.shape == (1, LARGE_PIXELS + 7)
    live = largest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            largest = max(largest, live)
    assert 0 < largest < LARGE_PIXELS + 16 * TILE_BYTES
