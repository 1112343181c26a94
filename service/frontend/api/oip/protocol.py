"""The protocol's messages, the same for HTTP and gRPC: inference requests, responses, and tensors.

A tensor has a datatype, a shape, and elements in row-major order. As raw bytes, numbers are little-endian without
padding, and each element of BYTES follows its length, a little-endian uint32. In JSON they are lists; elements of BYTES
that are not UTF-8 text are base64.
"""

from __future__ import annotations

import binascii
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import ImageTooLarge
from model.types import Image
from service.errors import BadRequest

INPUT = "image"
"""The name of every model's input."""
INPUT_FORMS = (
    f"{INPUT!r} is either BYTES of the shape [N] or [N, 1], each element an encoded image, or UINT8 of the shape "
    "[N, H, W, 3], upright RGB"
)
MAX_DIMENSIONS = 8
MAX_LISTED = 2**22
"""Numbers in one tensor that is a list, not raw bytes: each costs a hundred times the work."""

_LENGTH = struct.Struct("<I")


class Datatype(StrEnum):
    """The datatypes of this service's inputs and outputs."""

    BYTES = "BYTES"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP32 = "FP32"


DTYPES: dict[Datatype, np.dtype[Any]] = {
    Datatype.UINT8: np.dtype("u1"),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP32: np.dtype("<f4"),
}

MAX_SHOWN = 80
"""Characters of a parameter's value in an error."""

Values = npt.NDArray[Any] | list[bytes]
"""A tensor's elements: an array of its shape, or the elements of BYTES one after the other."""
Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output of a response."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    values: Values

    def raw(self) -> bytes:
        """The elements as raw bytes."""
        if isinstance(self.values, np.ndarray):
            return self.values.astype(DTYPES[self.datatype], copy=False).tobytes()
        return join_elements(self.values)

    def listed(self) -> list[Any]:
        """The elements as a flat list for JSON: BYTES as text, or all as base64 where one is not UTF-8.

        Raises:
            BadRequest: the tensor has more than `MAX_LISTED` numbers.
        """
        if isinstance(self.values, np.ndarray):
            if self.values.size > MAX_LISTED:
                raise BadRequest(
                    f"output {self.name!r} has {self.values.size:,} elements; JSON carries at most {MAX_LISTED:,}, "
                    "request it with the parameter binary_data"
                )
            return self.values.ravel().tolist()
        try:
            return [*map(bytes.decode, self.values)]
        except UnicodeDecodeError:
            return [binascii.b2a_base64(element, newline=False).decode("ascii") for element in self.values]


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input whose shape is not checked yet. `data` is raw bytes, or the elements of BYTES."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview | Sequence[bytes]


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """`classes` > 0 requests that many `score:index:label` elements in place of the tensor (Triton's classification
    extension). `binary`: as raw bytes rather than JSON; gRPC sends raw bytes only."""

    name: str
    binary: bool = True
    classes: int = 0


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Empty `outputs` request the model's default outputs, raw or as JSON by `binary`. `parameters` are unchecked."""

    id: str
    inputs: tuple[InputTensor, ...]
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, object]
    binary: bool = True


@dataclass(frozen=True, slots=True)
class InferResponse:
    """`outputs` in the requested order, each with whether it goes as raw bytes. `precision`: of the network."""

    model: str
    version: str
    id: str
    precision: str
    outputs: Sequence[tuple[Tensor, bool]]


def refuse_shared_memory(tensor: str, parameters: Mapping[str, object]) -> None:
    """Raises BadRequest where a tensor's parameters name a region of shared memory."""
    if "shared_memory_region" in parameters:
        raise BadRequest(f"tensor {tensor!r}: shared memory is not supported; send and receive the data itself")


def shown_value(value: object) -> str:
    """A parameter's value for an error, cut. Lists and objects are only named: they may be nested deeply."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def class_count(output: str, parameters: Mapping[str, object]) -> int:
    """The parameter `classification` of a requested output; 0 where it is not set.

    Raises:
        BadRequest: the value is not a whole number from 0 on.
    """
    count = parameters.get("classification", 0)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise BadRequest(f"output {output!r}: `classification` is {shown_value(count)}; expected a whole number")
    return count


def images_of(inputs: Sequence[InputTensor], max_images: int) -> Sequence[bytes | Image]:
    """The images of a request's one input, at least one: encoded files, or pixels that are views on the request.

    Raises:
        BadRequest: there is another input, or its datatype, shape or amount of data is wrong.
        ImageTooLarge: there are more than `max_images`.
    """
    if len(inputs) != 1 or inputs[0].name != INPUT:
        names = ", ".join([f"{tensor.name[:40]!r}" for tensor in inputs[:8]]) or "none"
        raise BadRequest(f"the request's inputs are {names}; expected one: {INPUT_FORMS}")
    (tensor,) = inputs
    count = element_count(INPUT, tensor.shape)
    match tensor.datatype:
        case Datatype.BYTES if len(tensor.shape) == 1 or tensor.shape[1:] == (1,):
            encoded = True
        case Datatype.UINT8 if len(tensor.shape) == 4 and tensor.shape[3] == 3 and 0 not in tensor.shape[1:3]:
            encoded = False
        case Datatype.BYTES | Datatype.UINT8:
            raise BadRequest(f"input {INPUT!r} is {tensor.datatype} of the shape {list(tensor.shape)}; {INPUT_FORMS}")
        case _:
            raise BadRequest(f"input {INPUT!r} has the datatype {tensor.datatype[:20]!r}; {INPUT_FORMS}")
    images = tensor.shape[0]
    if images == 0:
        raise BadRequest(f"input {INPUT!r} is empty; send at least one image")
    if images > max_images:
        raise ImageTooLarge(f"the request has {images:,} images, at most {max_images} are accepted; split it")
    return _encoded_images(tensor, count) if encoded else _pixel_images(tensor, count)


def element_count(name: str, shape: Sequence[int]) -> int:
    """The number of elements of a tensor of this shape.

    Raises:
        BadRequest: a size is negative, or there are more than `MAX_DIMENSIONS`.
    """
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0:
        shown = ", ".join(map(str, shape[:MAX_DIMENSIONS])) + (", …" if len(shape) > MAX_DIMENSIONS else "")
        raise BadRequest(
            f"input {name!r} has the shape [{shown}]; expected at most {MAX_DIMENSIONS} sizes, none of them negative"
        )
    return math.prod(shape)


def split_elements(name: str, data: memoryview, count: int) -> list[bytes]:
    """The elements of raw BYTES data.

    Raises:
        BadRequest: there are not exactly `count`, or a length exceeds the data that remains.
    """
    elements: list[bytes] = []
    offset = 0
    while offset < len(data) and len(elements) < count:
        if len(data) - offset < _LENGTH.size:
            raise BadRequest(
                f"input {name!r}: element {len(elements)} is cut off after {len(data) - offset} bytes of its length, a "
                f"little-endian uint32"
            )
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if length > len(data) - offset:
            raise BadRequest(
                f"input {name!r}: element {len(elements)} has a length of {length:,} bytes, "
                f"{len(data) - offset:,} remain"
            )
        elements.append(bytes(data[offset : offset + length]))
        offset += length
    if offset < len(data) or len(elements) < count:
        more = " and more" if offset < len(data) else ""
        raise BadRequest(f"input {name!r}: its data has {len(elements)} elements{more}, its shape needs {count}")
    return elements


def join_elements(elements: Sequence[bytes]) -> bytes:
    """Elements of BYTES as raw data."""
    return b"".join([part for element in elements for part in (_LENGTH.pack(len(element)), element)])


def _encoded_images(tensor: InputTensor, count: int) -> Sequence[bytes]:
    if isinstance(tensor.data, memoryview):
        return split_elements(INPUT, tensor.data, count)
    if len(tensor.data) != count:
        raise BadRequest(f"input {INPUT!r}: its data has {len(tensor.data):,} elements, its shape needs {count}")
    return tensor.data


def _pixel_images(tensor: InputTensor, count: int) -> Sequence[Image]:
    if not isinstance(tensor.data, memoryview) or tensor.data.nbytes != count:
        size = tensor.data.nbytes if isinstance(tensor.data, memoryview) else len(tensor.data)
        raise BadRequest(
            f"input {INPUT!r}: its data has {size:,} elements, its shape {list(tensor.shape)} needs {count:,}"
        )
    batch = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
    return [Image(pixels) for pixels in batch]
