"""Batch → RawOutputs: a bundle's network on a device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.bundle import Bundle
from model.net import mask_rcnn_detect, retinanet_detect
from model.net.build import Network, build_network
from model.net.classifier import ConvMLPClassifier, best_classes
from model.net.mask_rcnn import MaskRCNN
from model.net.normalise import Normalise
from model.net.retinanet import RetinaNet
from model.net.segmentation import label_maps
from model.net.semantic_fpn import SemanticFPN
from model.net.weights import DTYPES, Precision, load_weights
from model.spec import DetectPostSpec, KeepRatioSpec, Postprocessing
from model.types import Batch, RawOutput, Size


def default_device() -> torch.device:
    """The first CUDA device, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Predictor:
    """A model, loaded and ready to answer. One thread at a time may call it."""

    def __init__(self, bundle: Bundle, device: torch.device, precision: Precision = "fp32") -> None:
        """Load a bundle.

        Args:
            bundle: as read by `read_bundle`.
            device: where the network runs.
            precision: of its weights and activations; boxes, scores and resized logits are always float32.

        Raises:
            BundleInvalid: the weights do not fit the architecture.
            torch.OutOfMemoryError: the device has no room for the network.
        """
        config = bundle.config
        network = build_network(config.architecture, len(config.labels))
        load_weights(network, bundle)
        self.device = device
        self._dtype = DTYPES[precision]
        network.eval().to(device, self._dtype)
        # torch's annotations do not know this argument.
        self._network: Network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._normalise = Normalise(config.preprocessing.normalisation).to(device)
        self._padded = isinstance(config.preprocessing, KeepRatioSpec)
        self._postprocessing = config.postprocessing

    @torch.inference_mode()
    def predict(self, batch: Batch) -> tuple[RawOutput, ...]:
        """Answer inputs of one shape, row i for input i, each as if it were alone.

        Raises:
            torch.OutOfMemoryError: the batch is too large for the device; a smaller one may pass.
        """
        # torch cannot promise to leave shared memory alone, so that what is read-only is copied first.
        pixels = torch.from_numpy(np.require(batch.pixels, requirements="W")).to(self.device, non_blocking=True)
        contents = [geometry.content for geometry in batch.geometries] if self._padded else None
        x = self._normalise(pixels, contents).to(self._dtype)
        return tuple(answer(self._network, x, batch, self._postprocessing))


def answer(network: Network, x: Tensor, batch: Batch, postprocessing: Postprocessing) -> Sequence[RawOutput]:
    """Normalised float (N, 3, h, w) RGB → a row each, by the test time procedure of the network's family."""
    match network:
        case ConvMLPClassifier():
            return best_classes(network(x), batch.params)
        case SemanticFPN():
            return label_maps(network(x), Size(x.shape[2], x.shape[3]), batch.geometries)
        case RetinaNet():
            assert isinstance(postprocessing, DetectPostSpec)
            logits, deltas = network(x)
            return retinanet_detect.detections(logits, deltas, batch.geometries, batch.params, postprocessing)
        case MaskRCNN():
            assert isinstance(postprocessing, DetectPostSpec)
            pyramid, logits, deltas = network(x)
            return mask_rcnn_detect.detections(
                network.roi_head, pyramid, logits, deltas, batch.geometries, batch.params, postprocessing
            )
