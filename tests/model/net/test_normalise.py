from __future__ import annotations

import torch

from model.net.normalise import Normalise
from model.spec import Normalisation
from model.types import Size


def test_each_channel_has_its_own_mean_and_std() -> None:
    """Red is the first channel: a swapped colour order would be seen here."""
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).expand(1, 2, 2, 3)
    x = Normalise(Normalisation(mean=(10.0, 10.0, 10.0), std=(1.0, 2.0, 5.0)))(pixels)
    assert x.shape == (1, 3, 2, 2)
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([0.0, 5.0, 4.0]))


def test_padding_is_zero_after_normalisation_in_each_row() -> None:
    """What lies beyond a row's content does not reach the network, and a black pixel inside it does."""
    pixels = torch.full((2, 4, 6, 3), 77, dtype=torch.uint8)
    x = Normalise(Normalisation())(pixels, [Size(4, 5), Size(3, 6)])
    assert bool((x[0, :, :, 5:] == 0).all())
    assert bool((x[0, :, :, :5] != 0).all())
    assert bool((x[1, :, 3:] == 0).all())
    assert bool((x[1, :, :3] != 0).all())
