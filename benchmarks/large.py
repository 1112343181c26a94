"""Detection and segmentation at the paper's size: RetinaNet and Semantic FPN on ConvMLP-S, as published.

    FOLDER/models/retinanet_bench_s/     pictures of up to 1333 x 800, 80 classes
    FOLDER/models/sem_fpn_bench_s/       a shorter side of 512, 150 classes

The weights are random, but postprocessing costs about the same as with trained weights: the detector finds some tens
of objects in a picture, and the segmenter's label map has some connected classes. Answers in bf16 are close to those
in fp32: of random weights, the first ones are taken whose reference check each precision passes, as trained ones do.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.material import SOURCE, Material, network_input, own_statistics
from benchmarks.servers import LARGE_MODELS
from model.bundle import Bundle
from model.net.network import build_network
from model.net.normalise import Normalise
from model.net.retinanet import RetinaNet
from model.net.semantic_fpn import SemanticFPN
from model.net.weights import BundleMetadata, write_bundle
from model.precision import candidates_of, make_predictor
from model.predictor import load_network, predict_image, reference_answer
from model.reference import REFERENCE_PICTURE, mismatch, reference_params
from model.spec import DetectPostSpec
from model.zoo.catalogue import CatalogueEntry, entry
from model.zoo.importer import published_metadata

PUBLISHED = {"detect": "retinanet_convmlp_s_coco", "segment": "sem_fpn_convmlp_s_ade20k"}
"""The published models whose architecture, classes and pipelines they have."""
FITTED_TO = 4
"""Pictures."""
CANDIDATES = 100
"""Mean number of anchor scores of a picture above the threshold; NMS keeps about half of them."""
LOGITS, DELTAS = 0.5, 0.2
"""Standard deviations: of a class's logit over positions, and of box deltas."""
SEGMENTS = 8
"""Classes that a label map has."""
ROUNDS = 4
"""Of k-means."""
BRANCHES = (0.05, 0.2, 1.0, 1.0)
"""Weights of the head's branches, the finest first: small weights of the fine ones give connected classes."""
NEVER = 1e4
"""Larger than any difference between logits."""
SEEDS = 16
"""Random weights that are tried."""


def make_large(material: Material) -> None:
    """Write the two bundles, once."""
    pictures = material.pictures()[:FITTED_TO]
    for task, name in LARGE_MODELS.items():
        if (material.models_dir / name).exists():
            continue
        like = entry(PUBLISHED[task])
        x = _inputs(like, pictures)
        metadata = dataclasses.replace(published_metadata(like), name=name, source=SOURCE, accuracy=None)
        with TemporaryDirectory(dir=material.models_dir) as folder:
            bundle = next((one for one in _bundles(like, x, metadata, Path(folder)) if _is_ready(one)), None)
            if bundle is None:
                raise SystemExit(f"{name}: none of {SEEDS} random weights passes its reference check in all precisions")
            (Path(folder) / name).rename(material.models_dir / name)


def _bundles(like: CatalogueEntry, x: Tensor, metadata: BundleMetadata, folder: Path) -> Iterator[Bundle]:
    """Bundles of random weights that are fitted to the pictures; each replaces the one before."""
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        network = build_network(like.architecture, len(like.labels)).eval()
        if isinstance(network, RetinaNet):
            fit_detector(network, x)
        elif isinstance(network, SemanticFPN):
            fit_segmenter(network, x)
        yield write_bundle(folder, metadata, network, reference_answer)


def _is_ready(bundle: Bundle) -> bool:
    """Whether a worker is ready with it, in whichever precision."""
    config, device, picture = bundle.config, torch.device("cpu"), REFERENCE_PICTURE.read_bytes()
    predictors = (
        make_predictor(bundle, device, precision, load_network(bundle)) for precision in candidates_of(bundle, device)
    )
    return all(
        mismatch(predict_image(one, config, picture, reference_params(config.task)), config.reference) is None
        for one in predictors
    )


@torch.no_grad()
def fit_detector(network: RetinaNet, x: Tensor) -> None:
    """Fit the head to pictures (N, 3, H, W): about `CANDIDATES` class scores above the threshold, boxes at anchors."""
    head = network.bbox_head
    for module in itertools.chain(head.cls_convs.modules(), head.reg_convs.modules()):
        if isinstance(module, nn.Conv2d):
            # With their initial weights the towers would lose the differences between positions.
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    nn.init.zeros_(head.retina_cls.bias)  # type: ignore[arg-type]
    with own_statistics(network):
        network(x)
    logits, deltas = network(x)
    by_channel = torch.cat([level.transpose(0, 1).flatten(1) for level in logits], dim=1)
    std, mean = torch.std_mean(by_channel, dim=1, keepdim=True)
    standing_out = by_channel.sub_(mean).div_(std).flatten()
    least = standing_out.topk(CANDIDATES * len(x)).values[-1]
    threshold = DetectPostSpec().score_threshold
    head.retina_cls.weight.mul_(LOGITS / std[:, :, None, None])
    bias = math.log(threshold / (1 - threshold)) - LOGITS * (least + (mean / std).flatten())
    head.retina_cls.bias.copy_(bias)  # type: ignore[union-attr]
    head.retina_reg.weight.mul_(DELTAS / torch.cat([level.flatten() for level in deltas]).std())


@torch.no_grad()
def fit_segmenter(network: SemanticFPN, x: Tensor) -> None:
    """Fit the head to pictures (N, 3, H, W): each position gets the class of the nearest of `SEGMENTS` features."""
    head = network.decode_head
    for branch, weight in zip(head.scale_heads, BRANCHES, strict=True):
        for module in branch.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, weight)
    with own_statistics(network):
        network(x)
    found: list[Tensor] = []
    hook = head.conv_seg.register_forward_hook(lambda _module, inputs, _out: found.append(inputs[0]))
    network(x)
    hook.remove()
    features = found[0].permute(0, 2, 3, 1).flatten(0, 2)
    kinds = features[torch.randperm(len(features))[:SEGMENTS]]
    for _ in range(ROUNDS):
        nearest = (features @ kinds.T - kinds.square().sum(dim=1) / 2).argmax(dim=1)
        kinds = torch.stack([features[nearest == at].mean(dim=0) for at in range(SEGMENTS)])
    classes = torch.arange(SEGMENTS) * (len(head.conv_seg.weight) // SEGMENTS)
    nn.init.zeros_(head.conv_seg.weight)
    nn.init.constant_(head.conv_seg.bias, -NEVER)  # type: ignore[arg-type]
    # The nearest kind k is the one of the greatest f·k - |k|²/2.
    head.conv_seg.weight[classes] = kinds[:, :, None, None]
    head.conv_seg.bias[classes] = -kinds.square().sum(dim=1) / 2  # type: ignore[index]


def _inputs(like: CatalogueEntry, pictures: Sequence[bytes]) -> Tensor:
    """The pictures with the shape of the first one, normalised: float32 (N, 3, H, W)."""
    inputs = [network_input(data, like.preprocessing) for data in pictures]
    inputs = [one for one in inputs if one.pixels.shape == inputs[0].pixels.shape]
    pixels = torch.from_numpy(np.stack([one.pixels for one in inputs]))
    x: Tensor = Normalise(like.preprocessing)(pixels, [one.geometry.content for one in inputs])
    return x
