"""What a model is, in numbers: the part of a bundle's config that describes network and pipelines.

Torch-free, so that a front-end can read it. `model/net/build.py` turns an `Architecture` into modules; the
modules hold no numbers of their own. Sizes S, M, L are those of the ConvMLP paper (arXiv 2109.04454, table 1).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from model.types import Task

UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]


class Spec(BaseModel):
    """Immutable and strict: an unknown or mistyped field is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BackboneSpec(Spec):
    """ConvMLP: a conv tokenizer (stride 4), one conv stage (to stride 8), three conv-MLP stages (8, 16, 32).

    Feature levels at strides 4, 8, 16, 32 have `level_channels` channels.
    """

    tokenizer_channels: PositiveInt
    conv_blocks: PositiveInt
    stage_channels: tuple[PositiveInt, PositiveInt, PositiveInt]
    stage_depths: tuple[PositiveInt, PositiveInt, PositiveInt]
    mlp_ratios: tuple[PositiveInt, PositiveInt, PositiveInt]

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        return (self.tokenizer_channels, *self.stage_channels)

    @property
    def size(self) -> str:
        """`s`, `m` or `l` where the numbers are the paper's, else `custom`."""
        return next((name for name, spec in BACKBONES.items() if spec == self), "custom")


BACKBONES: dict[str, BackboneSpec] = {
    "s": BackboneSpec(
        tokenizer_channels=64,
        conv_blocks=2,
        stage_channels=(128, 256, 512),
        stage_depths=(2, 4, 2),
        mlp_ratios=(2, 2, 2),
    ),
    "m": BackboneSpec(
        tokenizer_channels=64,
        conv_blocks=3,
        stage_channels=(128, 256, 512),
        stage_depths=(3, 6, 3),
        mlp_ratios=(3, 3, 3),
    ),
    "l": BackboneSpec(
        tokenizer_channels=96,
        conv_blocks=3,
        stage_channels=(192, 384, 768),
        stage_depths=(4, 8, 3),
        mlp_ratios=(3, 3, 3),
    ),
}


class ClassifierSpec(Spec):
    """Backbone, LayerNorm, mean over positions, one linear layer (section 3.1 of the paper)."""

    family: Literal["classifier"] = "classifier"
    backbone: BackboneSpec


class RetinaNetSpec(Spec):
    """RetinaNet on an FPN over levels 8, 16, 32 with two more strided levels (arXiv 1708.02002)."""

    family: Literal["retinanet"] = "retinanet"
    backbone: BackboneSpec
    fpn_channels: PositiveInt = 256
    head_convs: PositiveInt = 4


class MaskRCNNSpec(Spec):
    """Mask R-CNN on an FPN over levels 4, 8, 16, 32 with one pooled level (arXiv 1703.06870)."""

    family: Literal["mask_rcnn"] = "mask_rcnn"
    backbone: BackboneSpec
    fpn_channels: PositiveInt = 256
    fc_channels: PositiveInt = 1024
    mask_convs: PositiveInt = 4


class SemanticFPNSpec(Spec):
    """Semantic FPN: one upsampling branch a level, summed at stride 4 (arXiv 1901.02446)."""

    family: Literal["semantic_fpn"] = "semantic_fpn"
    backbone: BackboneSpec
    fpn_channels: PositiveInt = 256
    head_channels: PositiveInt = 128


Architecture = Annotated[ClassifierSpec | RetinaNetSpec | MaskRCNNSpec | SemanticFPNSpec, Field(discriminator="family")]

TASK_OF_FAMILY: dict[str, Task] = {
    "classifier": Task.CLASSIFY,
    "retinanet": Task.DETECT,
    "mask_rcnn": Task.DETECT,
    "semantic_fpn": Task.SEGMENT,
}


class Normalisation(Spec):
    """(x - mean) / std per RGB channel, in grey levels 0 to 255."""

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)


class CenterCropSpec(Spec):
    """Shorter side to `resize_shorter` px with Pillow's antialiased bicubic, then the central `crop` px square."""

    kind: Literal["center_crop"] = "center_crop"
    resize_shorter: PositiveInt = 248
    crop: PositiveInt = 224
    normalisation: Normalisation = Normalisation()


class KeepRatioSpec(Spec):
    """The largest size of the same aspect within `long_side` x `short_side` px, OpenCV's bilinear.

    Then, after normalisation, zeros to the right and below up to a multiple of `pad_multiple` (1: none).
    """

    kind: Literal["keep_ratio"] = "keep_ratio"
    long_side: PositiveInt
    short_side: PositiveInt
    pad_multiple: PositiveInt = 1
    normalisation: Normalisation = Normalisation()


Preprocessing = Annotated[CenterCropSpec | KeepRatioSpec, Field(discriminator="kind")]


class ClassifyPostSpec(Spec):
    task: Literal["classify"] = "classify"


class DetectPostSpec(Spec):
    """Thresholds of the detectors' test time; the RPN's apply to Mask R-CNN alone."""

    task: Literal["detect"] = "detect"
    score_threshold: UnitInterval = 0.05
    nms_iou: UnitInterval = 0.5
    candidates_per_level: PositiveInt = 1000
    proposals: PositiveInt = 1000
    proposal_nms_iou: UnitInterval = 0.7
    mask_threshold: UnitInterval = 0.5


class SegmentPostSpec(Spec):
    task: Literal["segment"] = "segment"


Postprocessing = Annotated[ClassifyPostSpec | DetectPostSpec | SegmentPostSpec, Field(discriminator="task")]
