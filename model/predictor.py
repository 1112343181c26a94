"""Batch → RawOutputs: a bundle's network on a device; and the whole path of one picture, without a service."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.bundle import Bundle, BundleConfig
from model.decode import DecodeLimits, decode
from model.errors import BundleInvalid, NotFinite
from model.families.registry import backbone_of, family_of
from model.net.cpu.int8 import convert_to_int8
from model.net.cpu.onednn import convert_to_onednn
from model.net.fold import fold_batch_norm
from model.net.network import backbone_network_of, build_network, network_of
from model.net.normalise import Normalise
from model.net.weights import DTYPES, DtypeName, load_weights, read_input_ranges
from model.postprocess.results import postprocess, require_finite
from model.preprocess import prepare
from model.reference import ReferenceAnswer, reference_input, reference_params, summarise
from model.spec import PaddedSpec
from model.types import Batch, Deployment, ModelInput, QueryParams, RawOutput, Result

LIMITS = DecodeLimits(max_bytes=64 << 20, max_pixels=100_000_000)


def default_device() -> torch.device:
    """The first CUDA device, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


MAX_FORM_DIFFERENCE = 1e-4
"""Of two forms of a network, in float32; a few 1e-6 are usual."""


def load_network(bundle: Bundle) -> nn.Module:
    """As `load_deployed`, without its form."""
    return load_deployed(bundle)[0]


def load_deployed(bundle: Bundle) -> tuple[nn.Module, Deployment]:
    """A bundle's network with its weights, float32 in host memory, in the form to serve. Thread-safe.

    Raises:
        BundleInvalid: the weights do not fit the architecture.
    """
    config = bundle.config
    network = _read_network(bundle)
    reparameterise = backbone_network_of(backbone_of(config.architecture.backbone)).reparameterise
    if reparameterise is None:
        return network, Deployment()
    if config.architecture.backbone != config.architecture.backbone.published_form:
        return network, Deployment("deploy")  # in the file already
    before = _reference_outputs(network, config)
    reparameterise(network)
    after = _reference_outputs(network, config)
    largest = max(float((one - other).abs().max() / one.std()) for one, other in zip(before, after, strict=True))
    if not largest <= MAX_FORM_DIFFERENCE:  # extreme weights
        return _read_network(bundle), Deployment("trained", largest if math.isfinite(largest) else None)
    return network, Deployment("deploy", largest)


def _read_network(bundle: Bundle) -> nn.Module:
    network = build_network(bundle.config.architecture, len(bundle.config.labels))
    load_weights(network, bundle)
    return network.eval()


@torch.inference_mode()
def _reference_outputs(network: nn.Module, config: BundleConfig) -> list[Tensor]:
    """All tensors that a network computes from the reference picture."""
    pixels = torch.tensor(reference_input(config.preprocessing).pixels)[None]
    return output_tensors(network(Normalise(config.preprocessing)(pixels)))


def output_tensors(out: Tensor | Sequence[Any]) -> list[Tensor]:
    """All tensors of a network's output, nested or not."""
    return [out] if isinstance(out, Tensor) else [tensor for part in out for tensor in output_tensors(part)]


@dataclass(frozen=True, slots=True)
class Optimisations:
    """How a network runs. In exact arithmetic none but `int8` changes an answer; `make parity` measures the rounding.

    Without any of them, fp32 on the CPU gives the authors' answers except for single pixels.

    `channels_last`: weights and activations are (N, H, W, C) in memory. `folded`: batch norm is folded into the
    convolutions. `onednn`: CPU only; layers call oneDNN's operators; needs both of the former. `int8`: the layers that
    have int8 weights in the bundle multiply bytes, which rounds their inputs; needs `onednn` and fp32. `compiled`:
    torch.compile, which takes about a minute at the first input and again at the first of another shape, and needs
    a C++ compiler on the CPU. `by_row`: pictures run one by one, so that their rounding does not depend on the batch.
    """

    channels_last: bool = False
    folded: bool = False
    onednn: bool = False
    int8: bool = False
    compiled: bool = False
    by_row: bool = False

    def __post_init__(self) -> None:
        if self.onednn and not (self.folded and self.channels_last):
            raise ValueError("onednn needs folded and channels_last")
        if self.int8 and not self.onednn:
            raise ValueError("int8 needs onednn")


class Predictor:
    """A loaded model. Any number of threads may call `predict` at a time."""

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
            device: the device that the network runs on.
            precision: dtype of weights and activations; boxes, scores and resized logits are always float32.
            optimisations: how the network runs.
            network: from `load_network`; the predictor takes ownership. None: load it.

        Raises:
            BundleInvalid: the weights do not fit the architecture.
            torch.OutOfMemoryError: the network does not fit on the device.
        """
        config = bundle.config
        self._family = network_of(family_of(config.architecture))
        network = network or load_network(bundle)
        self.device = device
        self._dtype = DTYPES[precision]
        network.eval()
        if optimisations.folded:
            fold_batch_norm(network)
        network.to(device)
        self._memory_format = torch.channels_last if optimisations.channels_last else torch.contiguous_format
        # torch's annotations lack this argument.
        self._network: nn.Module = network.to(memory_format=self._memory_format)  # type: ignore[call-overload]
        if optimisations.int8:
            convert_to_int8(self._network, read_input_ranges(bundle), self._dtype)
        self._network.to(self._dtype)
        if optimisations.onednn:
            convert_to_onednn(self._network)
        if optimisations.compiled:
            self._family.compile(self._network)
        self._normalise = Normalise(config.preprocessing).to(device)
        self._by_row = optimisations.by_row
        self._padded = isinstance(config.preprocessing, PaddedSpec)
        self._postprocessing = config.postprocessing

    @torch.inference_mode()
    def predict(self, batch: Batch) -> tuple[RawOutput, ...]:
        """Run the network on a batch: row i of the outputs answers input i, as if it were alone in the batch. A row
        may be not `finite`, whatever the others are.

        Raises:
            torch.OutOfMemoryError: the batch is too large for the device; a smaller one may fit.
        """
        if self._by_row and len(batch) > 1:
            return tuple(output for row in range(len(batch)) for output in self.predict(batch.row(row)))
        # torch has no read-only tensors, so a read-only array is copied first.
        host = torch.from_numpy(np.require(batch.pixels, requirements="W"))
        if self.device.type == "cuda":
            host = host.pin_memory()  # else the copy waits for the device's current work
        pixels = host.to(self.device, non_blocking=True)
        contents = [geometry.content for geometry in batch.geometries] if self._padded else None
        x = self._normalise(pixels, contents).to(self._dtype, memory_format=self._memory_format)
        return tuple(self._family.predict(self._network, x, batch, self._postprocessing))


def predict_image(predictor: Predictor, config: BundleConfig, data: bytes, params: QueryParams) -> Result:
    """The result of one encoded image: decode, preprocess, run, postprocess.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge: as `decode`.
        NotFinite: the network's output has NaN or infinity.
        torch.OutOfMemoryError: the image is too large for the device.
    """
    return _predict_input(
        predictor, config, prepare(decode(data, LIMITS, config.preprocessing.reader), config.preprocessing), params
    )


def reference_answer(bundle: Bundle) -> ReferenceAnswer:
    """The bundle's answer to the reference picture, on the CPU in fp32.

    Raises:
        BundleInvalid: the weights do not fit the architecture, or give an output that is not finite.
    """
    config = bundle.config
    try:
        return summarise(reference_result(bundle))
    except NotFinite:
        raise BundleInvalid(
            f"model {config.name} gives an output that is not finite (NaN or infinity): its weights are damaged or "
            f"overflow {config.precision}"
        ) from None


def reference_result(bundle: Bundle) -> Result:
    """The bundle's result of the reference picture, on the CPU in fp32.

    Raises:
        BundleInvalid: the weights do not fit the architecture.
        NotFinite: the output has NaN or infinity.
    """
    config = bundle.config
    predictor = Predictor(bundle, torch.device("cpu"))
    model_input, params = reference_input(config.preprocessing), reference_params(config.task)
    return _predict_input(predictor, config, model_input, params)


def _predict_input(predictor: Predictor, config: BundleConfig, model_input: ModelInput, params: QueryParams) -> Result:
    (raw,) = predictor.predict(Batch(np.stack((model_input.pixels,)), (model_input.geometry,), (params,)))
    return postprocess(require_finite(raw), config, model_input.geometry.original)
