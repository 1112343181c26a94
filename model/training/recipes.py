"""The hyperparameters of the embedded bundles."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from model.families.classifier import ClassifierSpec
from model.families.convmlp import ConvMLPSpec
from model.families.registry import Architecture
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.spec import (
    CenterCropSpec,
    ClassifyPostSpec,
    DetectPostSpec,
    KeepRatioSpec,
    Postprocessing,
    Preprocessing,
    SegmentPostSpec,
)
from model.training.classify import ClassifyRecipe
from model.training.detect import DetectRecipe
from model.training.loop import Schedule
from model.training.segment import SegmentRecipe


class PetsModel(StrEnum):
    """The embedded models, which can be trained."""

    BREED = "breed"
    HEADS = "heads"
    OUTLINE = "outline"


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a training depends on except the data."""

    name: str
    architecture: Architecture
    examples: ClassifyRecipe | DetectRecipe | SegmentRecipe
    schedule: Schedule
    preprocessing: Preprocessing
    postprocessing: Postprocessing
    variant: str = ""
    """Backbone and size, of a model that is not an embedded one."""

    @property
    def breed_name(self) -> str:
        """The bundle of the breed model whose backbone a detector or a segmenter starts from."""
        return f"{self.variant or 'convmlp'}_pets_breed"


BACKBONE = ConvMLPSpec(
    tokenizer_channels=32,
    conv_blocks=2,
    stage_channels=(64, 128, 256),
    stage_depths=(2, 4, 2),
    mlp_ratios=(2, 2, 2),
)
"""A fifth of ConvMLP-S: enough for three thousand photographs, and fast on a CPU."""

RECIPES = {
    PetsModel.BREED: Recipe(
        name="convmlp_pets_breed",
        architecture=ClassifierSpec(backbone=BACKBONE),
        examples=ClassifyRecipe(),
        schedule=Schedule(
            epochs=58,
            decay_epochs=23,
            batch_size=48,
            learning_rate=3e-3,
            weight_decay=0.05,
            warmup_epochs=3,
            ema_decay=0.995,
            clip_norm=2.0,
            evaluate_every=2,
        ),
        preprocessing=CenterCropSpec(resize_shorter=216, crop=192),
        postprocessing=ClassifyPostSpec(),
    ),
    PetsModel.HEADS: Recipe(
        name="convmlp_pets_heads",
        architecture=RetinaNetSpec(backbone=BACKBONE, fpn_channels=64, head_convs=2),
        examples=DetectRecipe(),
        schedule=Schedule(
            epochs=8,
            decay_epochs=6,
            batch_size=24,
            learning_rate=1e-3,
            weight_decay=0.05,
            warmup_epochs=0.5,
            ema_decay=0.995,
            clip_norm=5.0,
            evaluate_every=1,
        ),
        preprocessing=KeepRatioSpec(long_side=320, short_side=224, pad_multiple=32),
        postprocessing=DetectPostSpec(score_threshold=0.5, nms_iou=0.4),
    ),
    PetsModel.OUTLINE: Recipe(
        name="convmlp_pets_outline",
        architecture=SemanticFPNSpec(backbone=BACKBONE, fpn_channels=64, head_channels=64),
        examples=SegmentRecipe(),
        schedule=Schedule(
            epochs=40,
            decay_epochs=26,
            batch_size=24,
            learning_rate=1e-3,
            weight_decay=0.05,
            warmup_epochs=2,
            ema_decay=0.99,
            clip_norm=5.0,
            evaluate_every=2,
        ),
        preprocessing=KeepRatioSpec(long_side=256, short_side=192, pad_multiple=32),
        postprocessing=SegmentPostSpec(),
    ),
}
