"""Which outputs a request gets, and what that asks of the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from model.bundle import BundleConfig
from model.postprocess.masks import MaskFormat
from model.types import QueryParams, Task
from service.errors import BadParameter, BadRequest
from service.frontend.oip.outputs import DETECTION_MASKS, SCORES, Form, Output, classification, outputs_of
from service.frontend.oip.request import RequestedOutput
from service.frontend.parameters import TOP_K, Asked


@dataclass(frozen=True, slots=True)
class Choice:
    """`outputs` in the order that was asked for, each with whether it goes as raw bytes; `params` is the worker's
    part, `form` the encoder's."""

    outputs: tuple[tuple[Output, bool], ...]
    params: QueryParams
    form: Form


def choose(config: BundleConfig, requested: tuple[RequestedOutput, ...], asked: Asked, *, binary: bool) -> Choice:
    """The requested outputs, or where none is named the usual ones, in the form that `binary` says.

    Raises:
        BadRequest: an output that the model does not have, or is named twice.
        BadParameter: the classification extension where it cannot be, or masks that are both asked for and not.
    """
    known = {output.name: output for output in outputs_of(config)}
    without_masks = asked.mask_format is MaskFormat.NONE
    if not requested:
        usual = (output for output in known.values() if output.usual)
        chosen = [(output, binary) for output in usual if not (without_masks and output.name == DETECTION_MASKS.name)]
    else:
        names = [wanted.name for wanted in requested]
        for name in names:
            if name not in known:
                raise BadRequest(f"model {config.name!r} has no output {name[:80]!r}; it has {', '.join(known)}")
            if names.count(name) > 1:
                raise BadRequest(f"output {name!r} is asked for twice; name it once")
        if without_masks and DETECTION_MASKS.name in names:
            raise BadParameter("the output 'masks' is asked for with the mask_format 'none'", "mask_format")
        chosen = [(_output(config, known[wanted.name], wanted.classes), wanted.binary) for wanted in requested]
    top_k = max([asked.params.top_k, *(wanted.classes for wanted in requested)])
    masks = any(output is DETECTION_MASKS for output, _ in chosen)
    params = replace(asked.params, top_k=top_k, masks=masks)
    return Choice(tuple(chosen), params, Form(asked.params.top_k, asked.mask_format))


def _output(config: BundleConfig, output: Output, classes: int) -> Output:
    if not classes:
        return output
    if config.task is not Task.CLASSIFY or output is not SCORES:
        raise BadParameter(
            f"output {output.name!r} of model {config.name!r} has no classification; a classifier's 'scores' has",
            "classification",
        )
    if classes not in TOP_K:
        raise BadParameter(f"`classification` is {classes}; expected {TOP_K}", "classification")
    return classification(classes)
