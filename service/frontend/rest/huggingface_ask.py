"""A Hugging Face client's body: the bytes of an image, or JSON with base64 and parameters."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec

from model.types import QueryParams, Task
from service.errors import BadParameter, BadRequest
from service.frontend.parameters import asked
from service.frontend.rest.body import from_base64
from service.frontend.rest.huggingface_schemas import (
    PARAMETERS_OF_TASK,
    ClassifyParameters,
    DetectParameters,
    Function,
    Parameters,
    SegmentParameters,
)

HOW_TO_SEND = 'send the bytes of one image as the body, or JSON {"inputs": "<base64>", "parameters": {…}}'


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    """`options` are hints to Hugging Face's own servers (caches, cold models) and change no answer."""

    inputs: str
    parameters: msgspec.Raw = msgspec.Raw(b"null")
    options: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(frozen=True, slots=True)
class Ask:
    """One encoded image, and what is asked of it."""

    image: bytes
    parameters: Parameters

    @property
    def params(self) -> QueryParams:
        """The worker's part of the parameters."""
        match self.parameters:
            case ClassifyParameters(top_k=top_k):
                return asked(top_k=top_k).params
            case DetectParameters(threshold=threshold):
                return asked(score_threshold=threshold, masks=False).params
            case SegmentParameters(threshold=threshold):
                return asked(score_threshold=threshold).params


async def read_ask(task: Task, body: bytes) -> Ask:
    """What a body asks for at the route of `task`.

    No image format begins as a JSON object does, so the Content-Type does not matter.

    Raises:
        BadRequest: no body, broken JSON, or another form of it.
        BadParameter: a parameter is unknown, out of its range, or asks for what cannot be done.
    """
    kind = PARAMETERS_OF_TASK[task]
    if not body:
        raise BadRequest(f"the body is empty; {HOW_TO_SEND}")
    if body.lstrip()[:1] == b"{":
        return await asyncio.to_thread(_from_json, kind, body)
    return Ask(body, kind())


def _from_json(kind: type[Parameters], body: bytes) -> Ask:
    try:
        document = msgspec.json.decode(body, type=_Body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"the JSON body does not have the expected form: {error}; {HOW_TO_SEND}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from None
    parameters = _parameters(kind, document.parameters)
    image = from_base64(document.inputs, "inputs")
    if isinstance(image, BadRequest):
        raise image
    return Ask(image, parameters)


def _parameters(kind: type[Parameters], text: msgspec.Raw) -> Parameters:
    try:
        parameters = msgspec.json.decode(text, type=kind | None) or kind()
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise BadParameter(f"the JSON body's `parameters` cannot be taken: {error}; known are {known}") from None
    function = parameters.function_to_apply if isinstance(parameters, ClassifyParameters) else None
    if function not in (None, Function.SOFTMAX):
        raise BadParameter(
            f"function_to_apply {function!s} is not to be had: the scores are probabilities, by softmax; leave it out",
            "function_to_apply",
        )
    return parameters
