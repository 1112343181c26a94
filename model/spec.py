"""The parameters of a model's pre- and postprocessing, as a bundle's config has them.

Torch-free: front-ends read them. The parameters of networks are in `model/families/`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from model.types import Reader

MIN_PIXEL_THRESHOLD, MAX_PIXEL_THRESHOLD = 0.001, 0.999
"""Nearer to 0 or 1, float32 logits have too few digits for the probabilities."""
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
PixelThreshold = Annotated[float, Field(ge=MIN_PIXEL_THRESHOLD, le=MAX_PIXEL_THRESHOLD)]
Level = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
"""Red, green, blue."""


class Spec(BaseModel):
    """Base of all parts of a config: immutable and strict. Unknown or mistyped fields, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Fields that the first version of the class did not have."""

    @property
    def added_defaults(self) -> set[str]:
        """The fields of `ADDED` that have their defaults: without them a config is as it was before they existed."""
        return {name for name in self.ADDED if getattr(self, name) == type(self).model_fields[name].default}


class Normalisation(Spec):
    """(x - mean) / std per RGB channel; mean and std are in grey levels, 0 to 255. The defaults are ImageNet's."""

    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)


class CenterCropSpec(Spec):
    """Resize the shorter side to `resize_shorter` px (Pillow's antialiased filter); crop the central `crop` px.

    `squash`: resize both sides to `resize_shorter` px, whatever the aspect ratio.
    """

    reader: ClassVar[Reader] = Reader.PILLOW
    ADDED = frozenset({"interpolation", "squash"})

    kind: Literal["center_crop"] = "center_crop"
    resize_shorter: PositiveInt = 248
    crop: PositiveInt = 224
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    squash: bool = False
    normalisation: Normalisation = Normalisation()


class KeepRatioSpec(Spec):
    """Resize to the largest size of the same aspect ratio within `long_side` x `short_side` px (OpenCV's bilinear).

    After normalisation, zeros pad the right and bottom edges to a multiple of `pad_multiple` px (1: no padding).
    """

    reader: ClassVar[Reader] = Reader.OPENCV
    kind: Literal["keep_ratio"] = "keep_ratio"
    long_side: PositiveInt
    short_side: PositiveInt
    pad_multiple: PositiveInt = 1
    normalisation: Normalisation = Normalisation()


class FixedSizeSpec(Spec):
    """Resize to `width` x `height` px, whatever the aspect ratio (OpenCV's bilinear); pad as `KeepRatioSpec` does."""

    reader: ClassVar[Reader] = Reader.OPENCV
    kind: Literal["fixed_size"] = "fixed_size"
    width: PositiveInt
    height: PositiveInt
    pad_multiple: PositiveInt = 1
    normalisation: Normalisation = Normalisation()

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the network's inputs, with the padding."""
        multiple = self.pad_multiple
        return -(-self.width // multiple) * multiple, -(-self.height // multiple) * multiple


PaddedSpec = KeepRatioSpec | FixedSizeSpec
"""Of detectors and segmenters."""
Preprocessing = Annotated[CenterCropSpec | PaddedSpec, Field(discriminator="kind")]


class ClassifyPostSpec(Spec):
    """How logits become scores: softmax, of which one class is right; or sigmoid, of which any number is (multi-label).

    Labels must score strictly above `score_threshold`, if it is above 0.
    """

    ADDED = frozenset({"activation", "score_threshold"})

    task: Literal["classify"] = "classify"
    activation: Literal["softmax", "sigmoid"] = "softmax"
    score_threshold: UnitInterval = 0.0


class DetectPostSpec(Spec):
    """Thresholds of the detectors at test time. `proposals` and `proposal_nms_iou` apply to Mask R-CNN's RPN alone.

    `candidates_per_level`: the best-scored boxes of a pyramid level that take part in NMS.
    """

    task: Literal["detect"] = "detect"
    score_threshold: UnitInterval = 0.05
    nms_iou: UnitInterval = 0.5
    candidates_per_level: PositiveInt = 1000
    proposals: PositiveInt = 1000
    proposal_nms_iou: UnitInterval = 0.7
    mask_threshold: UnitInterval = 0.5


class SegmentPostSpec(Spec):
    """`threshold`: of a network that was trained with one output channel, a class against the rest: a pixel is of the
    class if its probability is above. The network's weights contain it, so that the higher of both logits decides.
    None: the network was trained with a channel for each class.
    """

    ADDED = frozenset({"threshold"})

    task: Literal["segment"] = "segment"
    threshold: PixelThreshold | None = None


def odds_of_other_class(threshold: float) -> tuple[float, float]:
    """For pixels of either class, of logits that contain a threshold: the factor that takes it out of the odds of the
    other class."""
    odds = threshold / (1 - threshold)
    return odds, 1 / odds


Postprocessing = Annotated[ClassifyPostSpec | DetectPostSpec | SegmentPostSpec, Field(discriminator="task")]
