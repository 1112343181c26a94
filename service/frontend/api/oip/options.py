"""A request's `parameters`: what is asked of each image, with the ranges of every other transport."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.postprocess.masks import MaskFormat
from model.types import Task
from service.errors import BadParameter
from service.frontend.api.oip.protocol import Parameter
from service.frontend.core.parameters import MAX_DETECTIONS, SCORE_THRESHOLD, TOP_K, PredictParams, parse_params

OF_TASK: dict[Task, tuple[str, ...]] = {
    Task.CLASSIFY: ("top_k",),
    Task.DETECT: ("score_threshold", "max_detections", "mask_format"),
    Task.SEGMENT: ("mask_format",),
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
    }
)
"""Triton's, taken and not heeded: the earliest deadline is next, no answer depends on an earlier one, each request
has one response, and over gRPC data are always raw."""

_WHOLE = {"top_k": TOP_K, "max_detections": MAX_DETECTIONS}


@dataclass(frozen=True, slots=True)
class Options:
    """`timeout_s`: what the request itself allows, from its arrival on."""

    asked: PredictParams
    timeout_s: float | None


def read_options(task: Task, parameters: Mapping[str, Parameter]) -> Options:
    """Check a request's parameters.

    Raises:
        BadParameter: one is unknown, not of this task, of the wrong type or out of its range; `field` says which.
    """
    known = OF_TASK[task]
    for name in parameters:
        if name not in known and name != TIMEOUT and name not in WITHOUT_EFFECT:
            raise BadParameter(
                f"parameter {name[:80]!r} is not one of a model for {task.value!r}; it takes "
                f"{', '.join([*known, TIMEOUT])}",
                name[:80],
            )
    values = {name: _value(name, parameters[name]) for name in known if name in parameters}
    return Options(parse_params(**values), _timeout_s(parameters))


def _value(name: str, value: Parameter) -> Any:  # noqa: ANN401  (each parameter has a type of its own)
    if name == "mask_format":
        if value in list(MaskFormat):
            return MaskFormat(value)
        raise _wrong(name, value, f"one of {', '.join(MaskFormat)}")
    if name == "score_threshold":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong(name, value, str(SCORE_THRESHOLD))
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, str(_WHOLE[name]))
    return value


def _timeout_s(parameters: Mapping[str, Parameter]) -> float | None:
    """Of `timeout`, in microseconds; 0 is Triton's way to name none."""
    value = parameters.get(TIMEOUT, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(TIMEOUT, value, "a whole number of microseconds")
    return value / 1e6 if value else None


def _wrong(name: str, value: Parameter, expected: str) -> BadParameter:
    shown = ascii(value)
    return BadParameter(
        f"parameter {name!r} is {shown if len(shown) <= 80 else shown[:80] + '…'}; expected {expected}", name
    )
