"""Damage inside of files: what a decoder or a checksum notices is refused; what is only unusual is not."""

from __future__ import annotations

import base64

import numpy as np
import PIL.Image
import pytest
import simplejpeg

from model.decode import decode
from model.errors import ImageUndecodable
from model.reference import REFERENCE_PICTURE
from model.types import Reader
from tests.model.picture_files import PHOTO, RARE_JPEGS, encoded, png_chunk, random_array
from tests.model.test_decode import LIMITS
from tests.model.test_pictures import by_opencv, by_pillow

LARGE = PIL.Image.open(REFERENCE_PICTURE).convert("RGB").resize((200, 150))
JPEGS = {
    "baseline": encoded(LARGE, "JPEG"),
    "progressive": encoded(LARGE, "JPEG", progressive=True),
    "grey": encoded(LARGE.convert("L"), "JPEG"),
    "CMYK": encoded(LARGE.convert("CMYK"), "JPEG"),
    "restarts": encoded(LARGE, "JPEG", restart_marker_blocks=4),
}
BASELINE = JPEGS["baseline"]
PNG = encoded(PHOTO, "PNG")


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("place", [0.4, 0.6, 0.8])
def test_zeros_inside_of_a_jpeg_are_damage(name: str, place: float) -> None:
    """A part that was lost and filled with zeros leaves codes over, or too few; libjpeg only warns, and goes on."""
    data = JPEGS[name]
    start = int(place * len(data))
    with pytest.raises(ImageUndecodable, match=r"the JPEG is (damaged \(.*\)|truncated or corrupt); send the"):
        decode(data[:start] + bytes(800) + data[start + 800 :], LIMITS)


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_goes_on_as_another_is_damaged(name: str) -> None:
    """A truncated JPEG with a whole one behind it, or with the end of another one, has no whole picture."""
    data = JPEGS[name]
    half = len(data) // 2
    other = encoded(LARGE.rotate(180), "JPEG")
    for glued in (data[:half] + data, data[:half] + other[len(other) * 4 // 5 :]):
        with pytest.raises(ImageUndecodable):
            decode(glued, LIMITS)


@pytest.mark.parametrize("name", JPEGS)
def test_what_follows_a_whole_jpeg_is_no_part_of_it(name: str) -> None:
    """Phones append a second picture, or a video."""
    data = JPEGS[name]
    np.testing.assert_array_equal(decode(data + data[:500], LIMITS).pixels, by_pillow(data))


@pytest.mark.parametrize("name", [name for name in JPEGS if name != "progressive"])
def test_a_jpeg_may_lack_its_end_marker(name: str) -> None:
    """All pixels are there; some cameras write such files. One byte less, and some pixels are not."""
    data = JPEGS[name]
    np.testing.assert_array_equal(decode(data[:-2], LIMITS).pixels, by_pillow(data))
    with pytest.raises(ImageUndecodable):
        decode(data[:-20], LIMITS)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("zeros", [1, 8, 800])
def test_zeros_before_the_end_of_a_jpeg_are_no_damage(name: str, zeros: int) -> None:
    """Cameras and encoders fill a file or its last block with them. All codes come before them: with two bytes
    of codes less, the same file is damaged."""
    data = JPEGS[name]
    whole, padding = by_pillow(data), bytes(zeros)
    padded = data[:-2] + padding + data[-2:]
    np.testing.assert_array_equal(decode(padded, LIMITS).pixels, whole)
    np.testing.assert_array_equal(decode(padded, LIMITS, Reader.OPENCV).pixels, by_opencv(padded))
    np.testing.assert_array_equal(decode(data[:-2] + padding + b"\xff\xff" + data[-2:] + data, LIMITS).pixels, whole)
    if zeros > 8:
        with pytest.raises(ImageUndecodable):
            decode(data[:-4] + padding + data[-2:], LIMITS)


@pytest.mark.parametrize("name", [name for name in JPEGS if name != "progressive"])
def test_zeros_may_stand_in_the_place_of_a_jpegs_end_marker(name: str) -> None:
    """As a disk or a card leaves them behind a file."""
    data = JPEGS[name]
    padded = data[:-2] + bytes(800)
    np.testing.assert_array_equal(decode(padded, LIMITS).pixels, by_pillow(data))
    np.testing.assert_array_equal(decode(padded, LIMITS, Reader.OPENCV).pixels, by_opencv(padded))


def test_a_byte_of_ones_keeps_its_zero() -> None:
    """A byte 0xFF of codes is followed by a zero that is no filling."""
    noise = random_array((8, 4000))
    files = (encoded(PIL.Image.fromarray(noise[:, at : at + 8]), "JPEG", quality=100) for at in range(0, 4000, 8))
    data = next(file for file in files if file.endswith(b"\xff\0\xff\xd9"))
    np.testing.assert_array_equal(decode(data[:-2] + bytes(20) + data[-2:], LIMITS).pixels, by_pillow(data))


def test_zeros_in_the_place_of_scans_are_damage() -> None:
    """A progressive JPEG whose last scans were filled with zeros has no code without its end, but lacks details."""
    data = JPEGS["progressive"]
    scans = [at for at in range(len(data)) if data.startswith((b"\xff\xda", b"\xff\xc4"), at)]
    for start in scans[4:]:
        with pytest.raises(ImageUndecodable, match="extraneous bytes before marker 0xd9"):
            decode(data[:start] + bytes(len(data) - start - 2) + data[-2:], LIMITS)


@pytest.mark.parametrize("name", ["arithmetic", "arithmetic progressive"])
def test_zeros_at_the_end_of_arithmetic_codes_are_damage(name: str) -> None:
    """Its decoder takes what is missing as zeros and does not warn. Only zeros left over show that codes were lost."""
    data = base64.b64decode(RARE_JPEGS[name])
    with pytest.raises(ImageUndecodable, match="extraneous bytes before marker 0xd9"):
        decode(data[:-40] + bytes(400) + data[-2:], LIMITS)


JFIF, SCAN = BASELINE.index(b"JFIF\0"), BASELINE.index(b"\xff\xda")


@pytest.mark.parametrize(
    "data",
    [
        BASELINE[: JFIF + 5] + b"\3\7" + BASELINE[JFIF + 7 :],
        BASELINE[: SCAN + 11] + bytes(3) + BASELINE[SCAN + 14 :],
        BASELINE[: SCAN - 2] + BASELINE[SCAN - 2 : SCAN] + b"\xff\xff\xff" + BASELINE[SCAN:],
    ],
    ids=["JFIF of another version", "scan without a spectrum", "fill bytes"],
)
def test_odd_numbers_in_a_jpegs_headers_are_no_damage(data: bytes) -> None:
    """libjpeg warns of them as well, but no pixel depends on them."""
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_pillow(BASELINE))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_components_may_have_any_resolution(mode: str) -> None:
    """TurboJPEG refuses most combinations that JPEG allows, and Pillow decodes them. Here the second one has twice
    the resolution of the others."""
    data = encoded(LARGE.resize((32, 8)).convert(mode), "JPEG", subsampling=0)
    frame = data.index(b"\xff\xc0")
    data = data[: frame + 14] + b"\x21" + data[frame + 15 :]
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(data, "CMYK" if mode == "CMYK" else "RGB")
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_pillow(data))
    np.testing.assert_array_equal(decode(data, LIMITS, Reader.OPENCV).pixels, by_opencv(data))


IDAT = PNG.index(b"IDAT")


@pytest.mark.parametrize("place", [IDAT + 4, len(PNG) // 2, len(PNG) - 17, len(PNG) - 13])
def test_a_png_with_a_wrong_checksum_is_damaged(place: int) -> None:
    """One changed bit in the compressed pixels, or in their checksum, whether or not it inflates."""
    data = PNG[:place] + bytes([PNG[place] ^ 1]) + PNG[place + 1 :]
    with pytest.raises(ImageUndecodable, match="the checksum of a chunk IDAT is wrong; send the original file"):
        decode(data, LIMITS)


def test_checksums_of_other_chunks_do_not_matter() -> None:
    """No pixel depends on a text."""
    text = png_chunk(b"tEXt", b"Title\0Cat")[:-1] + b"?"
    np.testing.assert_array_equal(decode(PNG[:33] + text + PNG[33:], LIMITS).pixels, np.asarray(PHOTO))
