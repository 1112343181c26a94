"""The photographs for the comparison of models."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from model.decode import DecodeLimits, decode
from model.reference import REFERENCE_PICTURE
from model.types import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
LIMITS = DecodeLimits(max_bytes=64 << 20, max_pixels=100_000_000)
VARIATIONS = 12


def read_pictures(folder: Path, count: int) -> list[Image]:
    """At most `count` of a folder's pictures, evenly spread over its names: a sorted folder gives some of each kind.

    Raises:
        OSError: the folder or a file cannot be read.
        ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `model.decode.decode`.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    chosen = [files[number * len(files) // count] for number in range(count)] if len(files) > count else files
    return [decode(path.read_bytes(), LIMITS) for path in chosen]


def varied_reference(count: int = VARIATIONS) -> list[Image]:
    """The reference picture, then crops of it, every other one mirrored, in different brightness; always the same.

    All have its proportions, so that a compiled network gets one input shape.
    """
    whole = decode(REFERENCE_PICTURE.read_bytes(), LIMITS)
    random = np.random.default_rng(0)
    pictures = [whole]
    for number in range(1, count):
        share = random.uniform(0.7, 1.0)
        height, width = round(whole.size.height * share), round(whole.size.width * share)
        top = random.integers(whole.size.height - height + 1)
        left = random.integers(whole.size.width - width + 1)
        cropped = whole.pixels[top : top + height, left : left + width]
        if number % 2:
            cropped = cropped[:, ::-1]
        lit = cv2.convertScaleAbs(cropped, alpha=random.uniform(0.7, 1.3), beta=random.uniform(0, 20))
        pictures.append(Image(np.ascontiguousarray(lit, np.uint8)))
    return pictures
