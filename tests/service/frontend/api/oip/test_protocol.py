from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BadRequest
from service.frontend.api.oip.protocol import Datatype, Tensor, join_elements, split_elements


@given(st.lists(st.binary(max_size=40), max_size=12))
def test_elements_survive_their_raw_form(elements: list[bytes]) -> None:
    """Elements of any length and content are the same after joining and splitting."""
    assert split_elements("image", memoryview(join_elements(elements)), len(elements)) == elements


@given(st.binary(max_size=200), st.integers(0, 64))
def test_any_bytes_are_elements_or_a_bad_request(data: bytes, count: int) -> None:
    """Raw data is either exactly `count` elements or a BadRequest, whatever lengths it contains."""
    try:
        elements = split_elements("image", memoryview(data), count)
    except BadRequest:
        return
    assert len(elements) == count
    assert join_elements(elements) == data


def test_numbers_are_little_endian() -> None:
    """Raw numbers are little-endian on every machine."""
    tensor = Tensor("areas", Datatype.INT64, (1, 2), np.array([[1, 256]], ">i8"))
    assert tensor.raw() == bytes([1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0])
    assert tensor.listed() == [1, 256]


def test_a_view_is_written_row_by_row() -> None:
    """Raw data is row-major, also where the array in memory is not."""
    values = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    assert Tensor("label_map", Datatype.UINT8, (3, 2), values).raw() == bytes([0, 3, 1, 4, 2, 5])


def test_bytes_in_json() -> None:
    """Elements of text are text in JSON; a tensor with any other element is base64 throughout."""
    assert Tensor("labels", Datatype.BYTES, (1, 2), [b"Katze", "Käfer".encode()]).listed() == ["Katze", "Käfer"]
    received = Tensor("masks", Datatype.BYTES, (1, 2), [b"\x89PNG", b""]).listed()
    assert [base64.b64decode(text) for text in received] == [b"\x89PNG", b""]


def test_too_much_for_json() -> None:
    """JSON carries a limited number of elements; raw bytes carry more."""
    tensor = Tensor("label_map", Datatype.UINT8, (1, 2049, 2048), np.zeros((1, 2049, 2048), np.uint8))
    with pytest.raises(BadRequest, match="binary_data"):
        tensor.listed()
    assert len(tensor.raw()) == 2049 * 2048
