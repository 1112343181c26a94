"""A request's `parameters`: what is requested of each image, in the ranges of every other API, and its timeout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.postprocess.masks import MaskFormat
from model.types import Task
from service.errors import BadParameter
from service.frontend.api.oip.protocol import shown_value
from service.frontend.core.parameters import (
    CLASSES,
    IOU_THRESHOLD,
    MAX_DETECTIONS,
    MIN_AREA,
    SCORE_THRESHOLD,
    THRESHOLD,
    TILE_OVERLAP,
    TILES,
    TOP_K,
    PredictParams,
    cached_params,
    split_names,
)

OF_TASK: dict[Task, tuple[str, ...]] = {
    Task.CLASSIFY: ("top_k",),
    Task.DETECT: (
        "score_threshold",
        "max_detections",
        "classes",
        "iou_threshold",
        "agnostic_nms",
        "min_area",
        "mask_format",
        "tiles",
        "tile_overlap",
    ),
    Task.SEGMENT: ("classes", "min_area", "threshold", "mask_format", "tiles", "tile_overlap"),
}
TIMEOUT = "timeout"
WITHOUT_EFFECT = frozenset(
    {
        "priority",
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "triton_enable_empty_final_response",
        "binary_data_output",
        "content_type",
    }
)
"""Parameters of Triton's and KServe's clients that are accepted and ignored: requests run by earliest deadline, no
answer depends on an earlier one, each request has one response, gRPC always sends raw bytes, and an input is read by
its datatype alone."""

_WHOLE = {"top_k": TOP_K, "max_detections": MAX_DETECTIONS, "min_area": MIN_AREA}
_NUMBERS = {
    "score_threshold": SCORE_THRESHOLD,
    "iou_threshold": IOU_THRESHOLD,
    "threshold": THRESHOLD,
    "tile_overlap": TILE_OVERLAP,
}


def read_params(task: Task, parameters: Mapping[str, object]) -> PredictParams:
    """The checked parameters of a request.

    Raises:
        BadParameter: one is unknown, of another task, of the wrong type or out of its range; `field` names it.
    """
    known = OF_TASK[task]
    values: dict[str, Any] = {}
    for name, value in parameters.items():
        if name in known:
            values[name] = _checked(name, value)
        elif name != TIMEOUT and name not in WITHOUT_EFFECT:
            raise BadParameter(
                f"parameter {name[:80]!r} does not apply to a model for {task.value!r}; it takes "
                f"{', '.join([*known, TIMEOUT])}",
                name[:80],
            )
    return cached_params(**values)


def read_timeout_s(parameters: Mapping[str, object]) -> float | None:
    """The parameter `timeout`, which is in microseconds, counted from the request's arrival. 0 means none, as Triton's.

    Raises:
        BadParameter: it is not a whole number from 0 on.
    """
    value = parameters.get(TIMEOUT, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(TIMEOUT, value, "a whole number of microseconds")
    return value / 1e6 if value else None


def _checked(name: str, value: object) -> MaskFormat | str | int | float | tuple[str, ...]:
    """A value of the right type."""
    if name == "mask_format":
        if isinstance(value, str) and value in list(MaskFormat):
            return MaskFormat(value)
        raise _wrong(name, value, f"one of {', '.join(MaskFormat)}")
    if name == "classes":
        if isinstance(value, str):
            return split_names(value)
        if isinstance(value, int) and not isinstance(value, bool):  # the index of a class
            return (str(value),)
        raise _wrong(name, value, CLASSES)
    if name == "tiles":
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return str(value)
        raise _wrong(name, value, TILES)
    if name == "agnostic_nms":
        if isinstance(value, bool):
            return value
        raise _wrong(name, value, "true or false")
    if name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, value, str(_NUMBERS[name]))
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, str(_WHOLE[name]))
    return value


def _wrong(name: str, value: object, expected: str) -> BadParameter:
    return BadParameter(f"parameter {name!r} is {shown_value(value)}; expected {expected}", name)
