"""Tensors as the protocol carries them: a datatype, a shape, and the elements row-major.

As raw bytes numbers are little-endian without padding, and each element of BYTES follows its length, a little-endian
uint32. In JSON they are lists; bytes that are no text are base64 there.
"""

from __future__ import annotations

import binascii
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import BadRequest

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
