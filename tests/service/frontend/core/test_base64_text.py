"""Base64 in JSON: equal to the standard library's decoding, whatever the pieces, and strict."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.frontend.core.base64_text import PIECE_BYTES, decode_json_base64

SIZES = [0, 1, 2, 3, 100, *(PIECE_BYTES // 4 * 3 + more for more in range(-4, 5)), 2 * PIECE_BYTES]


def decoded(text: str) -> bytes:
    return decode_json_base64(msgspec.Raw(json.dumps(text).encode()))


@pytest.mark.parametrize("size", SIZES)
def test_every_length_is_decoded(size: int) -> None:
    """Also where the text ends near the end of a piece; with line breaks, escaped slashes, and as a data: URL."""
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    text = base64.b64encode(data).decode()
    assert decoded(text) == data
    assert decoded(base64.encodebytes(data).decode()) == data
    assert decoded(text + "\n") == data
    assert decoded(f"data:image/png;base64,{text}") == data
    assert decode_json_base64(msgspec.Raw(json.dumps(text).replace("/", "\\/").encode())) == data


@given(st.binary(max_size=200), st.integers(0, 300), st.sampled_from([" ", "\n", "\r\n", "\t "]))
def test_white_space_anywhere_does_not_count(data: bytes, at: int, space: str) -> None:
    """Line breaks are common in base64, and harmless."""
    text = base64.b64encode(data).decode()
    assert decoded(text[:at] + space + text[at:]) == data


@pytest.mark.parametrize("at", [0, PIECE_BYTES - 4, PIECE_BYTES, 2 * PIECE_BYTES - 4])
@pytest.mark.parametrize("bad", ["!", "=", "-", "é", "QQ==", "Q"])
def test_damage_anywhere_is_found(bad: str, at: int) -> None:
    """A character that is not base64's, padding before the end, and a length that cannot be are errors."""
    text = "QUJD" * (PIECE_BYTES * 2 // 4)
    with pytest.raises(ValueError, match="not valid base64"):
        decoded(text[:at] + bad + text[at:])


def test_another_kind_of_data_url_is_refused() -> None:
    """The text after the comma of a data: URL without base64 would be percent-encoded."""
    with pytest.raises(ValueError, match="without `;base64,`"):
        decoded("data:text/plain,QUJD")


@pytest.mark.parametrize("raw", [b"7", b"null", b"[]", b"true"])
def test_what_is_no_string_is_a_validation_error(raw: bytes) -> None:
    """The error names the type that was expected."""
    with pytest.raises(msgspec.ValidationError, match="Expected `str`"):
        decode_json_base64(msgspec.Raw(raw))
