"""Batch → RawOutputs: a bundle's network on a device; and one picture through the whole path, without a service."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from model.bundle import Bundle, BundleConfig
from model.decode import DecodeLimits, decode
from model.errors import BundleInvalid
from model.families.registry import family_of
from model.net.cpu.onednn import convert_to_onednn
from model.net.fold import fold_batch_norm
from model.net.network import build_network, network_of
from model.net.normalise import Normalise
from model.net.weights import DTYPES, DtypeName, load_weights
from model.postprocess.results import postprocess
from model.preprocess import prepare
from model.reference import REFERENCE_PARAMS, ReferenceAnswer, reference_input, summarise
from model.spec import KeepRatioSpec
from model.types import Batch, ClassifyResult, ModelInput, QueryParams, RawOutput, Result

LIMITS = DecodeLimits(max_bytes=64 << 20, max_pixels=100_000_000)


def default_device() -> torch.device:
    """The first CUDA device, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_network(bundle: Bundle) -> nn.Module:
    """A bundle's network with its weights, as float32 in host memory. Any thread may call it: no device is touched.

    Raises:
        BundleInvalid: the weights do not fit the architecture.
    """
    network = build_network(bundle.config.architecture, len(bundle.config.labels))
    load_weights(network, bundle)
    return network


@dataclass(frozen=True, slots=True)
class Optimisations:
    """How a network is run; in exact arithmetic none of it changes an answer. `make parity` measures the rest.

    Without any of it, fp32 on the CPU gives the authors' own answers but for a stray pixel.

    `channels_last`: weights and activations as (N, H, W, C) in memory. `folded`: batch norm folded into the
    convolutions. `onednn`: layers by oneDNN's own operators, on the CPU, which wants both of the former.
    `compiled`: by torch.compile, which takes a minute or so at the first input, once more at the first of another
    shape, and needs a C++ compiler on the CPU.
    """

    channels_last: bool = False
    folded: bool = False
    onednn: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.onednn and not (self.folded and self.channels_last):
            raise ValueError("oneDNN's operators want batch norm folded and channels last")


class Predictor:
    """A model, loaded and ready to answer, from any number of threads at a time."""

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        precision: DtypeName = "fp32",
        optimisations: Optimisations = Optimisations(),
        network: nn.Module | None = None,
    ) -> None:
        """Load a bundle.

        Args:
            bundle: as read by `read_bundle`.
            device: where the network runs.
            precision: of its weights and activations; boxes, scores and resized logits are always float32.
            optimisations: how the network is run.
            network: the bundle's, from `load_network`; it is read where it is left out, and is not the caller's
                any more.

        Raises:
            BundleInvalid: the weights do not fit the architecture.
            torch.OutOfMemoryError: the device has no room for the network.
        """
        config = bundle.config
        self._family = network_of(family_of(config.architecture))
        network = network or load_network(bundle)
        self.device = device
        self._dtype = DTYPES[precision]
        network.eval()
        if optimisations.folded:
            fold_batch_norm(network)
        network.to(device, self._dtype)
        self._memory_format = torch.channels_last if optimisations.channels_last else torch.contiguous_format
        # torch's annotations do not know this argument.
        self._network: nn.Module = network.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        if optimisations.onednn:
            convert_to_onednn(self._network)
        if optimisations.compiled:
            self._family.compile(self._network)
        self._normalise = Normalise(config.preprocessing).to(device)
        self._padded = isinstance(config.preprocessing, KeepRatioSpec)
        self._postprocessing = config.postprocessing

    @torch.inference_mode()
    def predict(self, batch: Batch) -> tuple[RawOutput, ...]:
        """Answer inputs of one shape, row i for input i, each as if it were alone.

        Raises:
            torch.OutOfMemoryError: the batch is too large for the device; a smaller one may pass.
        """
        # torch cannot promise to leave shared memory alone, so that what is read-only is copied first.
        host = torch.from_numpy(np.require(batch.pixels, requirements="W"))
        if self.device.type == "cuda":
            host = host.pin_memory()  # or the copy would wait for what the device does now
        pixels = host.to(self.device, non_blocking=True)
        contents = [geometry.content for geometry in batch.geometries] if self._padded else None
        x = self._normalise(pixels, contents).to(self._dtype, memory_format=self._memory_format)
        return tuple(self._family.predict(self._network, x, batch, self._postprocessing))


def predict_image(predictor: Predictor, config: BundleConfig, data: bytes, params: QueryParams) -> Result:
    """One encoded picture through decoding, preprocessing, network and postprocessing."""
    return _finished(predictor, config, prepare(decode(data, LIMITS), config.preprocessing), params)


def reference_answer(bundle: Bundle) -> ReferenceAnswer:
    """The bundle's answer on the reference picture, on the CPU in fp32.

    Raises:
        BundleInvalid: the weights do not fit, or answer something that is no number.
    """
    config = bundle.config
    predictor = Predictor(bundle, torch.device("cpu"))
    result = _finished(predictor, config, reference_input(config.preprocessing), REFERENCE_PARAMS)
    if isinstance(result, ClassifyResult) and not all(math.isfinite(one.score) for one in result.labels):
        raise BundleInvalid(
            f"model {config.name} answers scores that are no numbers: its weights are damaged, or too large for "
            f"{config.precision}"
        )
    return summarise(result)


def _finished(predictor: Predictor, config: BundleConfig, one: ModelInput, params: QueryParams) -> Result:
    (raw,) = predictor.predict(Batch(np.stack((one.pixels,)), (one.geometry,), (params,)))
    return postprocess(raw, config, one.geometry.original)
