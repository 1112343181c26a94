"""Tensors as the protocol carries them: a datatype, a shape, and the elements row-major.

As raw bytes numbers are little-endian without padding, and each element of BYTES follows its length, a little-endian
uint32. In JSON they are lists; bytes that are no text are base64 there.

An inference request, whichever way it came, and its response.

The input `image` of a request → the pictures in it: encoded files, or pixels that are decoded already.
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
from service.errors import BadRequest, ModelNotFound

MAX_DIMENSIONS = 8
MAX_LISTED = 2**22
"""Numbers of a tensor that is a list, not raw bytes: each takes a hundred times the work."""

_LENGTH = struct.Struct("<I")

Numbers = npt.NDArray[Any]


class Datatype(StrEnum):
    """Those that this service takes or gives."""

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


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output. `values` are numbers of `shape`, or of BYTES all elements in one row."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    values: Numbers | Sequence[bytes]

    def raw(self) -> bytes:
        if isinstance(self.values, np.ndarray):
            return self.values.astype(DTYPES[self.datatype], copy=False).tobytes()
        return join_elements(self.values)

    def listed(self) -> list[Any]:
        """All elements in one row, for JSON: BYTES as text, or as base64 where an element is none.

        Raises:
            BadRequest: too many numbers for a list.
        """
        if isinstance(self.values, np.ndarray):
            if self.values.size > MAX_LISTED:
                raise BadRequest(
                    f"output {self.name!r} has {self.values.size:,} elements, as JSON at most {MAX_LISTED:,} are "
                    "given; ask for it with the parameter binary_data"
                )
            return self.values.ravel().tolist()
        try:
            return [element.decode("utf-8") for element in self.values]
        except UnicodeDecodeError:
            return [binascii.b2a_base64(element, newline=False).decode("ascii") for element in self.values]


def element_count(name: str, shape: Sequence[int]) -> int:
    """The number of elements of a tensor of this shape.

    Raises:
        BadRequest: a negative size, or too many dimensions.
    """
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
        shown = ", ".join(map(str, shape[:MAX_DIMENSIONS])) + (", …" if len(shape) > MAX_DIMENSIONS else "")
        raise BadRequest(
            f"input {name!r} has the shape [{shown}]; expected at most {MAX_DIMENSIONS} sizes, none of them negative"
        )
    return math.prod(shape)


def split_elements(name: str, data: memoryview, count: int) -> list[bytes]:
    """The elements of raw BYTES data.

    Raises:
        BadRequest: there are not exactly `count`, or a length reaches beyond the data's end.
    """
    elements: list[bytes] = []
    at = 0
    while at < len(data) and len(elements) < count:
        if len(data) - at < _LENGTH.size:
            raise BadRequest(
                f"input {name!r}: element {len(elements)} begins with {len(data) - at} bytes, expected its length as "
                f"{_LENGTH.size} (little-endian)"
            )
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise BadRequest(
                f"input {name!r}: element {len(elements)} announces {length:,} bytes, {len(data) - at:,} are left"
            )
        elements.append(bytes(data[at : at + length]))
        at += length
    if at < len(data) or len(elements) < count:
        more = " and more" if at < len(data) else ""
        raise BadRequest(f"input {name!r}: its data has {len(elements)} elements{more}, its shape says {count}")
    return elements


def join_elements(elements: Sequence[bytes]) -> bytes:
    """Elements of BYTES as raw data."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


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


INPUT = "image"
FORMS = (
    f"{INPUT!r} is either BYTES of the shape [N] or [N, 1], each element an encoded image, or UINT8 of the shape "
    "[N, H, W, 3], upright RGB"
)

Picture = bytes | Image


def pictures_of(inputs: Sequence[InputTensor], max_images: int) -> list[Picture]:
    """The pictures of a request's one input; at least one. Pixels are views on the request's own bytes.

    Raises:
        BadRequest: another input, or of this one a datatype, shape or amount of data that it cannot have.
        ImageTooLarge: more than `max_images`.
    """
    names = [tensor.name for tensor in inputs]
    if names != [INPUT]:
        shown = ", ".join(f"{name[:40]!r}" for name in names[:8]) or "none"
        raise BadRequest(f"the request's inputs are {shown}; expected one: {FORMS}")
    tensor = inputs[0]
    count = element_count(INPUT, tensor.shape)
    match tensor.datatype:
        case Datatype.BYTES if len(tensor.shape) == 1 or tensor.shape[1:] == (1,):
            _check_number(tensor.shape[0], max_images)
            return [*_elements(tensor, count)]
        case Datatype.UINT8 if len(tensor.shape) == 4 and tensor.shape[3] == 3 and 0 not in tensor.shape[1:3]:
            _check_number(tensor.shape[0], max_images)
            return [*_pixels(tensor, count)]
        case Datatype.BYTES | Datatype.UINT8:
            raise BadRequest(f"input {INPUT!r} is {tensor.datatype} of the shape {list(tensor.shape)}; {FORMS}")
        case _:
            raise BadRequest(f"input {INPUT!r} has the datatype {tensor.datatype[:20]!r}; {FORMS}")


def _check_number(images: int, max_images: int) -> None:
    if images == 0:
        raise BadRequest(f"input {INPUT!r} has no element; give at least one image")
    if images > max_images:
        raise ImageTooLarge(
            f"the request has {images:,} images, at most {max_images} are accepted; send them in several requests"
        )


def _elements(tensor: InputTensor, count: int) -> Sequence[bytes]:
    if isinstance(tensor.data, memoryview):
        return split_elements(INPUT, tensor.data, count)
    if len(tensor.data) != count:
        raise BadRequest(f"input {INPUT!r}: its data has {len(tensor.data):,} elements, its shape says {count}")
    return tensor.data


def _pixels(tensor: InputTensor, count: int) -> list[Image]:
    if not isinstance(tensor.data, memoryview) or tensor.data.nbytes != count:
        size = tensor.data.nbytes if isinstance(tensor.data, memoryview) else len(tensor.data)
        raise BadRequest(
            f"input {INPUT!r}: its data has {size:,} elements, its shape {list(tensor.shape)} says {count:,}"
        )
    batch = np.frombuffer(tensor.data, np.uint8).reshape(tensor.shape)
    return [Image(pixels) for pixels in batch]
