from __future__ import annotations

import pytest
import torch

from model.decode import DecodeLimits, decode
from model.net.normalise import Normalise
from model.preprocess import prepare
from model.spec import CenterCropSpec, KeepRatioSpec, Normalisation, Preprocessing
from model.types import Size
from tests import goldens

DETECT = KeepRatioSpec(long_side=1333, short_side=800, pad_multiple=32)
SEGMENT = KeepRatioSpec(long_side=2048, short_side=512)


def test_each_channel_has_its_own_mean_and_std() -> None:
    """Red is the first channel; a swapped colour order would fail here."""
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).expand(1, 2, 2, 3)
    constants = Normalisation(mean=(10.0, 10.0, 10.0), std=(1.0, 2.0, 5.0))
    for spec in (
        CenterCropSpec(normalisation=constants),
        KeepRatioSpec(long_side=9, short_side=9, normalisation=constants),
    ):
        x = Normalise(spec)(pixels)
        assert x.shape == (1, 3, 2, 2)
        torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([0.0, 5.0, 4.0]))


@goldens.requires_goldens
@pytest.mark.parametrize(
    ("task", "picture", "spec"),
    [
        *(("cls", picture, CenterCropSpec()) for picture in "ab"),
        *(("det", picture, DETECT) for picture in "abd"),
        *(("seg", picture, SEGMENT) for picture in "abc"),
    ],
)
def test_inputs_are_the_authors_to_the_last_bit(task: str, picture: str, spec: Preprocessing) -> None:
    """From the file to the network's input, padding included, inputs equal the authors' pipelines bit for bit."""
    data = (goldens.GOLDENS / "images" / f"{picture}.png").read_bytes()
    one = prepare(decode(data, DecodeLimits(10**7, 10**7)), spec)
    contents = [one.geometry.content] if isinstance(spec, KeepRatioSpec) else None
    x = Normalise(spec)(torch.from_numpy(one.pixels.copy())[None], contents)
    assert torch.equal(x, goldens.network_input(task, picture))


def test_padding_is_zero_after_normalisation_in_each_row() -> None:
    """Pixels beyond a row's content do not reach the network; black pixels inside it do."""
    pixels = torch.full((2, 4, 6, 3), 77, dtype=torch.uint8)
    x = Normalise(SEGMENT)(pixels, [Size(4, 5), Size(3, 6)])
    assert bool((x[0, :, :, 5:] == 0).all())
    assert bool((x[0, :, :, :5] != 0).all())
    assert bool((x[1, :, 3:] == 0).all())
    assert bool((x[1, :, :3] != 0).all())
