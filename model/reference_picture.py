"""The reference picture as a model gets it; `model/reference.py` has what its answer must be."""

from __future__ import annotations

from model.bundle import REFERENCE_PICTURE, BundleConfig
from model.decode import DecodeLimits, decode
from model.preprocess import prepare
from model.types import ModelInput

LIMITS = DecodeLimits(max_bytes=1 << 20, max_pixels=1_000_000)


def reference_input(config: BundleConfig) -> ModelInput:
    """The reference picture, through decoding and the model's own preprocessing."""
    return prepare(decode(REFERENCE_PICTURE.read_bytes(), LIMITS), config.preprocessing)
