"""What can be asked of a picture: the parameters of each task, and the kind of answer that comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypedDict, TypeVar

from convmlp_client.results import Classification, Detections, Result, Segmentation, Task

R = TypeVar("R", bound=Result, covariant=True)

MaskFormat = Literal["rle", "png", "polygon", "none"]
"""How masks travel: COCO's run lengths (the smallest, exact), PNG (exact), or polygons (without holes)."""


class ClassifyParameters(TypedDict, total=False):
    """`model`: which model answers (default: the task's default model). `top_k`: labels, 1 to 1000 (default 5)."""

    model: str | None
    top_k: int | None


class DetectParameters(TypedDict, total=False):
    """`model`: which model answers (default: the task's default model). `score_threshold`: detections have a score
    above it, 0 to 1 (default: the model's own). `max_detections`: 1 to 1000 (default 100). `masks`: False to do
    without (default: where the model has them). `mask_format`: how they travel (default "rle")."""

    model: str | None
    score_threshold: float | None
    max_detections: int | None
    masks: bool | None
    mask_format: MaskFormat | None


class SegmentParameters(TypedDict, total=False):
    """`model`: which model answers (default: the task's default model). `masks`: False to do without (default:
    True). `mask_format`: how they travel (default "rle")."""

    model: str | None
    masks: bool | None
    mask_format: MaskFormat | None


@dataclass(frozen=True, slots=True)
class Question(Generic[R]):
    """A task and its parameters, of which none is None; what is not named is the service's to choose."""

    task: Task
    answer: type[R]
    parameters: Mapping[str, Any]


def classify_params(parameters: ClassifyParameters) -> Question[Classification]:
    """Raises TypeError where a parameter is not of this task. So do the others."""
    return Question(Task.CLASSIFY, Classification, _given(parameters, ClassifyParameters))


def detect_params(parameters: DetectParameters) -> Question[Detections]:
    return Question(Task.DETECT, Detections, _given(parameters, DetectParameters))


def segment_params(parameters: SegmentParameters) -> Question[Segmentation]:
    return Question(Task.SEGMENT, Segmentation, _given(parameters, SegmentParameters))


def _given(parameters: Mapping[str, object], known: type) -> Mapping[str, object]:
    names = known.__annotations__
    for name in parameters:
        if name not in names:
            raise TypeError(f"there is no parameter {name!r} here; there are {', '.join(names)}")
    return {name: value for name, value in parameters.items() if value is not None}
