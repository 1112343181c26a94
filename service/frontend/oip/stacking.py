"""The parts of a request's images → tensors, whose first axis is the images'.

Where images differ in size, or in the number of what was found, the smaller parts are padded on the right and below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from model.errors import ImageTooLarge
from service.frontend.oip.outputs import Output, Row
from service.frontend.oip.tensors import DTYPES, Datatype, Tensor


def stack(output: Output, rows: Sequence[Row], max_bytes: int) -> Tensor:
    """One output of all images, in their order.

    Raises:
        ImageTooLarge: padded to the largest it would have more than `max_bytes`.
    """
    if output.datatype is Datatype.BYTES:
        most = max(len(row) for row in rows)
        elements = [element for row in rows for element in (*row, *[b""] * (most - len(row)))]
        return Tensor(output.name, output.datatype, (len(rows), most), elements)
    arrays = [np.asarray(row) for row in rows]
    largest = tuple(max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))
    dtype = DTYPES[output.datatype]
    if len(arrays) * math.prod(largest) * dtype.itemsize > max_bytes:
        raise answer_too_large(output, max_bytes)
    values = np.full((len(arrays), *largest), output.padding, dtype)
    for place, array in zip(values, arrays, strict=True):
        place[tuple(map(slice, array.shape))] = array
    return Tensor(output.name, output.datatype, values.shape, values)


def row_bytes(row: Row) -> int:
    """What an image's part of an output holds in memory."""
    return row.nbytes if isinstance(row, np.ndarray) else sum(map(len, row))


def answer_too_large(output: Output, max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"with the output {output.name!r} the response would have more than {max_bytes:,} bytes; name only the "
        "outputs that are needed, or send fewer or smaller images"
    )
