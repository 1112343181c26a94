"""The pictures that a model is quantised with: half of them for its ranges, half for its agreement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model.decode import decode
from model.errors import BundleInvalid, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.predictor import LIMITS
from model.preprocess import prepare
from model.reference import reference_input
from model.spec import Preprocessing
from model.types import ModelInput

MAX_PICTURES = 512
REFERENCE_VARIANTS = 16
Halves = tuple[list[ModelInput], list[ModelInput]]


def folder_inputs(folder: Path, preprocessing: Preprocessing, most: int = MAX_PICTURES) -> Iterator[ModelInput]:
    """A model's inputs from the pictures of a folder and its subfolders, `most` at the most, spread over their names.

    Files that are no pictures, or damaged ones, are left out.

    Raises:
        OSError: the folder or a file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    step = max(1, len(files) / most)
    for at in range(min(most, len(files))):
        try:
            image = decode(files[int(at * step)].read_bytes(), LIMITS, preprocessing.reader)
        except (ImageUndecodable, UnsupportedFormat, ImageTooLarge):
            continue
        yield prepare(image, preprocessing)


def reference_variants(preprocessing: Preprocessing) -> Iterator[ModelInput]:
    """The reference picture, moved, mirrored, and of other brightness."""
    original = reference_input(preprocessing)
    height, width = original.geometry.content.height, original.geometry.content.width
    for number in range(REFERENCE_VARIANTS):
        content = np.roll(original.pixels[:height, :width], number * width // REFERENCE_VARIANTS, axis=1)
        if number % 4 >= 2:
            content = content[:, ::-1]
        pixels = original.pixels.copy()
        pixels[:height, :width] = content if number % 3 else content // 2 + 64 * (number % 2)
        yield ModelInput(pixels, original.geometry)


def halves(inputs: Sequence[ModelInput]) -> Halves:
    """Every second input for the ranges, the others for the agreement.

    Raises:
        BundleInvalid: there are fewer than two.
    """
    if len(inputs) < 2:
        raise BundleInvalid(
            f"quantisation needs two pictures at least, and found {len(inputs)}: one half measures the ranges, "
            "the other one the agreement; a hundred of the kind that the model will see are better"
        )
    return list(inputs[::2]), list(inputs[1::2])
