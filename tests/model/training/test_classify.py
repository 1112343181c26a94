from __future__ import annotations

import numpy as np
import torch

from model.training.augment import mix
from model.training.classify import CELL, body_map, head_map
from model.training.data import IGNORE
from model.types import Box


def test_a_head_fills_its_cells_in_its_species_map() -> None:
    """A dog's head from cell 1 to cell 3 sets these cells of the dog map, and none elsewhere."""
    found = head_map(Box(CELL, 0, 3 * CELL, CELL), species=1, cells=4)
    assert found[0].sum() == 0
    assert found[1].tolist() == [[0, 1, 1, 0], [0] * 4, [0] * 4, [0] * 4]
    assert head_map(Box(0, 0, 0, 0), species=0, cells=4).sum() == 0


def test_a_cell_is_the_share_of_known_animal_pixels() -> None:
    """Half a cell of dog is 0.5; unknown pixels are ignored; a cell of unknown pixels alone is NaN."""
    labels = np.full((2 * CELL, 2 * CELL), IGNORE, np.uint8)
    labels[:CELL, :CELL] = 0
    labels[: CELL // 2, :CELL] = 2
    labels[:CELL, CELL : CELL + 4] = 2
    np.testing.assert_array_equal(body_map(labels, 2), [[[0, 0], [np.nan] * 2], [[0.5, 1], [np.nan] * 2]])


def test_unknown_pixels_stay_unknown_when_mixed() -> None:
    """Neither mixup nor CutMix turns a missing mask into background."""
    x, targets = torch.zeros(2, 3, 64, 64), torch.eye(2)
    maps = torch.zeros(2, 1, 4, 4)
    maps[1] = torch.nan
    x[1] = 1
    for seed in range(20):
        mixed, shares, mixed_maps = mix(np.random.default_rng(seed), x, targets, maps, CELL)
        assert torch.equal(mixed_maps.isnan(), mixed[:, :1, ::CELL, ::CELL] > 0), seed
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))
