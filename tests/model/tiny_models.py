"""Small networks with random weights, as real bundles and as checkpoint files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from model.bundle import Bundle, Source
from model.families.classifier import ClassifierSpec
from model.families.convmlp import ConvMLPSpec
from model.families.mask_rcnn import MaskRCNNSpec
from model.families.registry import Architecture, family_of
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.net.mask_rcnn import MaskRCNN
from model.net.network import build_network
from model.net.weights import BundleMetadata, DtypeName, write_bundle
from model.reference import ClassifyReference, DetectReference, ReferenceAnswer, SegmentReference
from model.spec import CenterCropSpec, ClassifyPostSpec, DetectPostSpec, KeepRatioSpec, Postprocessing, SegmentPostSpec
from model.types import Task

TINY = ConvMLPSpec(
    tokenizer_channels=8, conv_blocks=1, stage_channels=(8, 16, 16), stage_depths=(1, 1, 1), mlp_ratios=(2, 2, 2)
)
NUM_CLASSES = 5
ARCHITECTURES: dict[str, Architecture] = {
    "classifier": ClassifierSpec(backbone=TINY),
    "retinanet": RetinaNetSpec(backbone=TINY, fpn_channels=16, head_convs=1),
    "mask_rcnn": MaskRCNNSpec(backbone=TINY, fpn_channels=16, fc_channels=32, mask_convs=1),
    "semantic_fpn": SemanticFPNSpec(backbone=TINY, fpn_channels=16, head_channels=8),
}
REFERENCES: dict[Task, ReferenceAnswer] = {
    Task.CLASSIFY: ClassifyReference(labels=()),
    Task.DETECT: DetectReference(detections=()),
    Task.SEGMENT: SegmentReference(grid=("0",)),
}
LAST_LAYER = {
    "classifier": "head",
    "retinanet": "bbox_head.retina_cls",
    "mask_rcnn": "roi_head.bbox_head.fc_cls",
    "semantic_fpn": "decode_head.conv_seg",
}
POSTPROCESSING: dict[Task, Postprocessing] = {
    Task.CLASSIFY: ClassifyPostSpec(),
    Task.DETECT: DetectPostSpec(score_threshold=0.3, candidates_per_level=200, proposals=100),
    Task.SEGMENT: SegmentPostSpec(),
}


LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
SPREADS = {"retina_cls": 2.0, "retina_reg": 0.3, "rpn_cls": 2.0, "rpn_reg": 0.3, "fc_cls": 2.0, "conv_seg": 2.0}
"""Standard deviation of the outputs of last layers; of all other layers it is 1."""


@torch.no_grad()
def tiny_network(family: str) -> nn.Module:
    """A random network, each layer centred and scaled on noise: scores and boxes vary, none is extreme."""
    torch.manual_seed(7)
    network = build_network(ARCHITECTURES[family], NUM_CLASSES).eval()
    names = {module: name.rsplit(".", 1)[-1] for name, module in network.named_modules()}
    scaled: set[nn.Module] = set()

    def scale(module: nn.Module, _: object, out: torch.Tensor) -> torch.Tensor:
        if module in scaled:
            return out
        scaled.add(module)
        assert isinstance(module, LAYERS)
        factor = SPREADS.get(names[module], 1.0) / out.std()
        module.weight.mul_(factor)
        if module.bias is not None:
            channels = -1 if isinstance(module, nn.Linear) else 1
            mean = out.transpose(channels, -1).flatten(0, -2).mean(dim=0)
            module.bias.sub_(mean).mul_(factor)
            out = (out.transpose(channels, -1) - mean).transpose(channels, -1)
        return out * factor

    hooks = [module.register_forward_hook(scale) for module in names if isinstance(module, LAYERS)]
    network(torch.randn(2, 3, 96, 128))
    if isinstance(network, MaskRCNN):
        network.roi_head.bbox_head(torch.randn(64, 16, 7, 7))
        network.roi_head.mask_head(torch.randn(8, 16, 14, 14))
    for hook in hooks:
        hook.remove()
    return network


def metadata(family: str, name: str = "tiny", precision: DtypeName = "fp32") -> BundleMetadata:
    task = family_of(ARCHITECTURES[family]).task
    return BundleMetadata(
        name=name,
        architecture=ARCHITECTURES[family],
        labels=tuple(f"class {index}" for index in range(NUM_CLASSES)),
        preprocessing=CenterCropSpec(resize_shorter=72, crop=64)
        if task == Task.CLASSIFY
        else KeepRatioSpec(long_side=128, short_side=96, pad_multiple=32),
        postprocessing=POSTPROCESSING[task],
        precision=precision,
        source=Source(description="random", url="https://example.org", licence="CC0-1.0", attribution="nobody"),
        accuracy=None,
    )


def tiny_bundle(store: Path, family: str) -> Bundle:
    reference = REFERENCES[family_of(ARCHITECTURES[family]).task]
    return write_bundle(store, metadata(family), tiny_network(family), lambda _: reference)


def damaged_bundle(store: Path, family: str) -> Bundle:
    """A tiny bundle, valid but for its last layer, whose weights are NaN."""
    network = tiny_network(family)
    with torch.no_grad():
        network.get_submodule(LAST_LAYER[family]).weight.fill_(torch.nan)  # type: ignore[operator]
    reference = REFERENCES[family_of(ARCHITECTURES[family]).task]
    return write_bundle(store, metadata(family), network, lambda _: reference)


def tiny_checkpoint(folder: Path, family: str, name: str = "mine.pth") -> Path:
    """A tiny network's state dict: bare for a classifier, else wrapped as mmcv does."""
    path = folder / name
    tensors = tiny_network(family).state_dict()
    if family == "classifier":
        torch.save(tensors, path)
    else:
        # As mmcv writes it: more than weights, but plain values.
        meta = {"mmcv_version": "1.4.8", "config": "model = dict()", "epoch": 12, "hook_msgs": {}}
        torch.save({"meta": meta, "state_dict": tensors, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path
