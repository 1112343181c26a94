"""WebP: the memory of lossless streams' tables of codes, and sizes that contradict each other."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.containers import vp8l
from model.decode import decode, read_header
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable
from model.reference import REFERENCE_PICTURE
from tests.model.picture_files import encoded
from tests.model.test_containers import by_pillow, sides, webp_chunk, webp_file
from tests.model.test_decode import LIMITS
from tests.model.vp8l_files import stream_of_groups

with PIL.Image.open(REFERENCE_PICTURE) as _file:
    PHOTO = _file.convert("RGB").resize((240, 180))
"""Large enough for its tables to be checked."""
LOSSLESS = encoded(PHOTO, "WEBP", lossless=True)


def test_the_photo_is_checked() -> None:
    """The pictures of this module could have as large tables as any."""
    assert vp8l.table_limit(*PHOTO.size) == vp8l.MAX_TABLE_BYTES


@pytest.mark.parametrize("method", [0, 1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("quality", [0, 75, 100])
@pytest.mark.parametrize("colours", [0, 2, 4, 16, 200])
def test_encoders_pictures_are_answered(method: int, quality: int, colours: int) -> None:
    """Whatever libwebp's encoder makes of a picture, with every transform and palette, passes the check."""
    picture = PHOTO.quantize(colours).convert("RGB") if colours else PHOTO
    data = encoded(picture, "WEBP", lossless=True, method=method, quality=quality)
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, np.asarray(picture))


def test_alpha_of_a_lossy_picture_is_answered() -> None:
    """Alpha is a lossless stream without a header."""
    picture = PHOTO.convert("RGBA")
    picture.putalpha(PHOTO.convert("L"))
    data = encoded(picture, "WEBP", quality=80)
    assert b"ALPH" in data
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_pillow(data))


def as_picture(across: int, down: int, cache_bits: int = 0) -> bytes:
    return webp_file(webp_chunk(b"VP8L", stream_of_groups(across, down, cache_bits=cache_bits)))


def as_alpha(across: int, down: int, cache_bits: int = 0) -> bytes:
    colours = encoded(PIL.Image.new("RGB", (4 * across, 4 * down)), "WEBP")
    alpha = b"\1" + stream_of_groups(across, down, cache_bits=cache_bits, has_header=False)
    canvas = b"\x10\0\0\0" + sides(4 * across, 4 * down)
    return webp_file(webp_chunk(b"VP8X", canvas), webp_chunk(b"ALPH", alpha), colours[12:])


@pytest.mark.parametrize("form", [as_picture, as_alpha])
def test_tables_of_codes_are_bounded(form: object) -> None:
    """Some bytes of a file make thousands of bytes of tables. More groups of codes than an encoder makes are refused,
    fewer with a cache of colours, whose tables are larger; up to there a decoder takes the stream."""
    assert callable(form)
    accepted = form(50, 50)
    assert len(accepted) < 20_000
    header = read_header(accepted, LIMITS)
    assert header.decode_bytes > vp8l.MAX_TABLE_BYTES
    with PIL.Image.open(BytesIO(accepted)) as file:
        assert file.size == (header.size.width, header.size.height)
    np.testing.assert_array_equal(decode(accepted, LIMITS).pixels, by_pillow(accepted))
    for data in (form(60, 60), form(50, 50, 11)):
        with pytest.raises(ImageTooLarge, match=r"tables of the lossless WebP's 3,600 groups|2,500 groups"):
            decode(data, LIMITS)


def test_few_blocks_have_few_tables() -> None:
    """The memory that a small picture is charged follows its blocks."""
    assert vp8l.table_limit(8, 8) < 100_000
    header = read_header(as_picture(2, 2), LIMITS)
    assert header.decode_bytes < 110_000


@pytest.mark.parametrize("flags", [0x00, 0x10])
@pytest.mark.parametrize("lossless", [True, False])
def test_the_coded_size_is_the_canvas_s(lossless: bool, flags: int) -> None:
    """The limits are checked with the canvas, and the decoder takes the size in the coded pixels: they must agree."""
    coded = encoded(PHOTO, "WEBP", lossless=lossless)[12:]
    for canvas in ((10, 10), (PHOTO.width, PHOTO.height + 1)):
        data = webp_file(webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides(*canvas)), coded)
        with pytest.raises(ImageUndecodable, match="declares several sizes"):
            read_header(data, LIMITS)


@given(
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=6),
    end=st.floats(0, 1),
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_any_stream_is_decoded_or_refused(edits: list[tuple[float, bytes]], end: float) -> None:
    """Damage anywhere, mostly in what is read before the pixels, is a domain error or a picture of the same size."""
    data = bytearray(LOSSLESS)
    for place, content in edits:
        start = 25 + int(place**3 * (len(data) - 25))
        data[start : start + len(content)] = content
    try:
        pixels = decode(bytes(data[: 25 + int(end * len(data))]), LIMITS).pixels
    except ConvMLPError:
        return
    assert pixels.shape == (180, 240, 3)
