"""The reference answers of the authors' own models, which lie beside the checkout and are no part of it."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

from model.types import Geometry, Size

GOLDENS = Path(__file__).parents[2] / "shared" / "goldens"

FAMILIES = GOLDENS.with_name("goldens-families")

requires_families = pytest.mark.skipif(
    not (GOLDENS.is_dir() and FAMILIES.is_dir()),
    reason="the goldens are not beside the checkout (../shared/goldens, ../shared/goldens-families)",
)
requires_goldens = pytest.mark.skipif(
    not GOLDENS.is_dir(), reason="the goldens are not beside the checkout (../shared/goldens)"
)


def fill(network: nn.Module) -> None:
    """Give every tensor of a network the goldens' values, which follow from its key and shape."""
    _filler().fill_state_dict(network.state_dict())


@cache
def _filler() -> Any:  # noqa: ANN401 - the goldens' own module
    spec = importlib.util.spec_from_file_location("goldens_fill", GOLDENS / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class System:
    """The reference outputs of another backbone's authors, and their weights: those of `fill`, times a factor that
    follows from the key."""

    name: str

    def json(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """A file below `given`."""
        return json.loads((FAMILIES / self.name / "given" / path).read_text(encoding="utf-8"))

    def input(self, name: str) -> Tensor:
        """Preprocessed by the authors' pipeline: float32 (1, 3, H, W)."""
        return torch.from_numpy(np.load(FAMILIES / self.name / "given" / "inputs" / f"{name}.npz")["img"])

    def tensors(self, variant: str) -> dict[str, Tensor]:
        """The filled state dict of a variant, in the order of the authors' file."""
        return {
            key: self._values(key, tuple(shape), getattr(torch, dtype))
            for key, shape, dtype in self.json(f"keys/{variant}.json")["keys"]
        }

    @cached_property
    def _factors(self) -> list[tuple[str, float]]:
        """What the values of the first pattern that a key has are multiplied by."""
        factors: list[tuple[str, float]] = json.loads((FAMILIES / self.name / "fill_factors.json").read_text())
        return factors

    def _values(self, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        filler, leaf = _filler(), key.rpartition(".")[2]
        if leaf == "pos_embed" or leaf.startswith("relative_pos"):
            values = filler.unit(key, math.prod(shape)).reshape(shape)
        else:
            values = filler.make(key, shape)
        if values is None:
            return torch.zeros(shape, dtype=dtype)
        factor = next((factor for pattern, factor in self._factors if re.search(pattern, key)), 1.0)
        return torch.from_numpy(np.ascontiguousarray(factor * values)).to(dtype)


def load(path: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((GOLDENS / path).read_text(encoding="utf-8"))


def network_input(task: str, picture: str) -> Tensor:
    """Preprocessed by the authors' pipeline: float32 (1, 3, H, W)."""
    return torch.from_numpy(np.load(GOLDENS / "inputs" / f"{task}_{picture}.npz")["img"])


def picture_size(picture: str) -> Size:
    with PIL.Image.open(GOLDENS / "images" / f"{picture}.png") as image:
        return Size(image.height, image.width)


def detection_geometry(picture: str) -> Geometry:
    """A picture within 1333 x 800, sizes rounded to the nearest pixel."""
    original = picture_size(picture)
    long, short = max(original.height, original.width), min(original.height, original.width)
    scale = min(1333 / long, 800 / short)
    return Geometry(original, Size(int(original.height * scale + 0.5), int(original.width * scale + 0.5)))


def label_map(name: str) -> np.ndarray:
    with PIL.Image.open(GOLDENS / "final" / f"{name}.png") as image:
        return np.array(image)


def picture(name: str) -> np.ndarray:
    """uint8 (H, W, 3)."""
    with PIL.Image.open(GOLDENS / "images" / f"{name}.png") as image:
        return np.array(image.convert("RGB"))
