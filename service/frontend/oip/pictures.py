"""The input `image` of a request → the pictures in it: encoded files, or pixels that are decoded already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.errors import ImageTooLarge
from model.types import Image
from service.errors import BadRequest
from service.frontend.oip.request import InputTensor
from service.frontend.oip.tensors import Datatype, element_count, split_elements

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
