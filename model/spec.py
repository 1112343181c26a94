"""Both pipelines of a model in numbers: the parts of a bundle's config that describe pre- and postprocessing.

Torch-free, so that a front-end can read it. Networks in numbers are in `model/families/`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]


class Spec(BaseModel):
    """Immutable and strict: an unknown or mistyped field is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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
