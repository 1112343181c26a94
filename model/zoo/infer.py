"""What network a checkpoint's tensors belong to, read off their names and shapes."""

from __future__ import annotations

import torch
from pydantic import ValidationError

from model.errors import BundleInvalid
from model.net.boxes import RETINANET_ANCHORS
from model.net.build import Network, build_network
from model.net.weights import state_dict_mismatch
from model.spec import (
    Architecture,
    BackboneSpec,
    ClassifierSpec,
    MaskRCNNSpec,
    RetinaNetSpec,
    SemanticFPNSpec,
)
from model.zoo.checkpoint import Checkpoint

CLASS_KEYS = {
    "retinanet": "bbox_head.retina_cls.weight",
    "mask_rcnn": "roi_head.mask_head.conv_logits.weight",
    "semantic_fpn": "decode_head.conv_seg.weight",
    "classifier": "head.weight",
}
"""A tensor that only this family has; its rows tell the number of classes."""


def infer_architecture(checkpoint: Checkpoint) -> tuple[Architecture, int]:
    """The architecture and its number of classes; every tensor fits it.

    Raises:
        BundleInvalid: no network that is known here, or one of its tensors is missing, too many or of another
            shape or kind than the rest of them says.
    """
    names = StateDictShapes(checkpoint)
    family = next((one for one, mark in CLASS_KEYS.items() if mark in checkpoint.tensors), None)
    if family is None:
        raise BundleInvalid(
            f"{checkpoint.path} holds none of the networks that are known here ({', '.join(CLASS_KEYS)}); expected one "
            f"of the tensors {', '.join(CLASS_KEYS.values())}"
        )
    if not all(tensor.numel() for tensor in checkpoint.tensors.values()):
        raise BundleInvalid(f"{checkpoint.path} has tensors without any numbers in them")
    try:
        architecture, num_classes = _infer_family(family, names)
    except ValidationError as error:
        first = error.errors()[0]
        raise BundleInvalid(
            f"{checkpoint.path} looks like a {family}, but its tensors tell {first['loc'][-1]} {first['input']}"
        ) from error
    if num_classes == 0:
        raise BundleInvalid(
            f"{checkpoint.path} looks like a {family}, but has rows for no class in {CLASS_KEYS[family]}"
        )
    if problems := state_dict_mismatch(meta_network(architecture, num_classes), checkpoint.tensors):
        raise BundleInvalid(f"{checkpoint.path} looks like a {family} of {num_classes} classes, but {problems}")
    return architecture, num_classes


def meta_network(architecture: Architecture, num_classes: int) -> Network:
    """The network with names and shapes but without memory for its numbers."""
    with torch.device("meta"):
        return build_network(architecture, num_classes)


def _infer_family(family: str, names: StateDictShapes) -> tuple[Architecture, int]:
    last = names.rows(CLASS_KEYS[family])
    backbone = _backbone(names, prefix="" if family == "classifier" else "backbone.")
    if family == "classifier":
        return ClassifierSpec(backbone=backbone), last
    fpn_channels = names.rows("neck.fpn_convs.0.conv.weight")
    if family == "retinanet":
        head_convs = names.count("bbox_head.cls_convs.")
        spec = RetinaNetSpec(backbone=backbone, fpn_channels=fpn_channels, head_convs=head_convs)
        return spec, last // RETINANET_ANCHORS.per_position
    if family == "mask_rcnn":
        fc_channels = names.rows("roi_head.bbox_head.shared_fcs.0.weight")
        mask_convs = names.count("roi_head.mask_head.convs.")
        return MaskRCNNSpec(
            backbone=backbone, fpn_channels=fpn_channels, fc_channels=fc_channels, mask_convs=mask_convs
        ), last
    head_channels = names.rows("decode_head.scale_heads.0.0.conv.weight")
    return SemanticFPNSpec(backbone=backbone, fpn_channels=fpn_channels, head_channels=head_channels), last


def _backbone(names: StateDictShapes, prefix: str) -> BackboneSpec:
    stages = [f"{prefix}stages.{index}.blocks." for index in range(3)]
    channels = [names.rows(f"{stage}0.norm1.weight") for stage in stages]
    hidden = [names.rows(f"{stage}0.channel_mlp1.fc1.weight") for stage in stages]
    first, second, third = (
        (wide, names.count(stage), many // max(wide, 1))
        for stage, wide, many in zip(stages, channels, hidden, strict=True)
    )
    return BackboneSpec(
        tokenizer_channels=names.rows(f"{prefix}tokenizer.block.6.weight"),
        conv_blocks=names.count(f"{prefix}conv_stages.conv_blocks."),
        stage_channels=(first[0], second[0], third[0]),
        stage_depths=(first[1], second[1], third[1]),
        mlp_ratios=(first[2], second[2], third[2]),
    )


class StateDictShapes:
    """Questions to a checkpoint's names and shapes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = checkpoint.path
        self._tensors = checkpoint.tensors

    def rows(self, name: str) -> int:
        """The first axis of a tensor: output channels, where it is a layer's weight."""
        if name not in self._tensors or self._tensors[name].ndim == 0:
            raise BundleInvalid(f"{self._path} is no ConvMLP of a kind that is known here: it has no tensor {name}")
        return self._tensors[name].shape[0]

    def count(self, prefix: str) -> int:
        """How many numbered modules there are behind `prefix`."""
        return len({name[len(prefix) :].partition(".")[0] for name in self._tensors if name.startswith(prefix)})
