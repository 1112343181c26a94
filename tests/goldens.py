"""The reference answers of the authors' own models, which lie beside the checkout and are no part of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

from model.types import Geometry, Size

GOLDENS = Path(__file__).parents[2] / "shared" / "goldens"

requires_goldens = pytest.mark.skipif(
    not GOLDENS.is_dir(), reason="the goldens are not beside the checkout (../shared/goldens)"
)


def fill(network: nn.Module) -> None:
    """Give every tensor of a network the goldens' values, which follow from its key and shape."""
    spec = importlib.util.spec_from_file_location("goldens_fill", GOLDENS / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.fill_state_dict(network.state_dict())


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
