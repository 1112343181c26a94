"""A bundle's answer through the whole path, as a service would give it: what is committed in the bundle itself."""

from __future__ import annotations

import math

import numpy as np
import torch

from model.bundle import Bundle, BundleConfig
from model.decode import DecodeLimits, decode
from model.errors import BundleInvalid
from model.postprocess.finish import finish
from model.predictor import Predictor
from model.preprocess import prepare
from model.reference import REFERENCE_PARAMS, ReferenceAnswer, summarise
from model.reference_picture import reference_input
from model.types import Batch, ClassifyResult, ModelInput, QueryParams, Result

LIMITS = DecodeLimits(max_bytes=64 << 20, max_pixels=100_000_000)


def answer(predictor: Predictor, config: BundleConfig, data: bytes, params: QueryParams) -> Result:
    """One encoded picture through decoding, preprocessing, network and postprocessing."""
    return _finished(predictor, config, prepare(decode(data, LIMITS), config.preprocessing), params)


def reference_answer(bundle: Bundle) -> ReferenceAnswer:
    """The bundle's answer on the reference picture, on the CPU in fp32.

    Raises:
        BundleInvalid: the weights do not fit, or answer something that is no number.
    """
    config = bundle.config
    predictor = Predictor(bundle, torch.device("cpu"))
    result = _finished(predictor, config, reference_input(config), REFERENCE_PARAMS)
    if isinstance(result, ClassifyResult) and not all(math.isfinite(one.score) for one in result.labels):
        raise BundleInvalid(
            f"model {config.name} answers scores that are no numbers: its weights are damaged, or too large for "
            f"{config.precision}"
        )
    return summarise(result)


def _finished(predictor: Predictor, config: BundleConfig, one: ModelInput, params: QueryParams) -> Result:
    (raw,) = predictor.predict(Batch(np.stack((one.pixels,)), (one.geometry,), (params,)))
    return finish(raw, config, one.geometry.original)
