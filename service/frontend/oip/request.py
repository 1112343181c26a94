"""An inference request, whichever way it came, and its response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.errors import BadRequest, ModelNotFound
from service.frontend.oip.tensors import Tensor

VERSION = "1"
"""A model has one version; the weights' hash tells two of one name apart."""

Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input, its shape not checked. `data` is raw bytes, or of BYTES already the elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview | Sequence[bytes]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """`classes` > 0: so many `score:index:label` instead of the tensor (Triton's classification extension).

    `binary`: as raw bytes rather than JSON; gRPC knows nothing else.
    """

    name: str
    binary: bool = True
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """`outputs`: none means the model's usual ones, in the form that `binary` says."""

    id: str
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Parameter]
    binary: bool = True


@dataclass(frozen=True, slots=True)
class InferResponse:
    """`outputs` in the order that was asked for, and with each whether it goes as raw bytes."""

    model: str
    id: str
    outputs: tuple[tuple[Tensor, bool], ...]


def check_version(model: str, version: str) -> None:
    """Raises ModelNotFound for any version but the one that there is; an empty one means that."""
    if version not in ("", VERSION):
        raise ModelNotFound(f"model {model!r} has no version {version[:20]!r} here, only {VERSION!r}")


def refuse_shared_memory(tensor: str, parameters: Mapping[str, object]) -> None:
    """Raises BadRequest where a tensor's parameters mean a region of shared memory."""
    if "shared_memory_region" in parameters:
        raise BadRequest(
            f"tensor {tensor!r}: this service shares no memory with callers; send and take the data itself"
        )


def class_count(output: str, parameters: Mapping[str, object]) -> int:
    """What a requested output's parameters say of the classification extension; 0: nothing.

    Raises:
        BadRequest: not a whole number from 1 on.
    """
    count = parameters.get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise BadRequest(f"output {output!r}: `classification` is {count!r:.40}, expected a whole number")
    return count
