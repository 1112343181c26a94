from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from convmlp_client.images import MAX_FILE_BYTES, encoded_image, opened_image
from model.decode import DecodeLimits, decode

LIMITS = DecodeLimits(max_bytes=10**6, max_pixels=10**6)
ORIENTATION = 0x0112


def picture(mode: str = "RGB", width: int = 7, height: int = 4) -> PIL.Image.Image:
    """Every pixel has a value of its own."""
    rgb = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3) * 3
    return PIL.Image.fromarray(rgb).convert(mode)


def jpeg(orientation: int | None = None) -> bytes:
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    file = io.BytesIO()
    picture().save(file, "JPEG", exif=exif)
    return file.getvalue()


def served(data: bytes) -> Any:  # noqa: ANN401  (an array)
    """What the server makes of the bytes."""
    return decode(data, LIMITS).pixels


def test_files_and_bytes_are_sent_as_they_are(tmp_path: Path) -> None:
    """A path, as str or Path, an open file and the bytes in any form are the same bytes, not encoded anew."""
    data = jpeg()
    path = tmp_path / "a://b.jpg"
    path.parent.mkdir()
    path.write_bytes(data)
    for given in (path, Path("/./") / path, data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert encoded_image(given) == data
    assert encoded_image(str(path)) == data
    with path.open("rb") as file:
        assert encoded_image(file) == data


@pytest.mark.parametrize(
    "mode", ["RGB", "L", "1", "P", "RGBA", "LA", "I;16", "CMYK", "YCbCr", "RGBa", "La", "PA", "RGBX"]
)
def test_the_server_sees_what_a_pil_image_holds(mode: str) -> None:
    """Of each of Pillow's modes the server decodes the very pixels that a result is drawn on."""
    given = (
        picture("L").convert("I;16")
        if mode == "I;16"
        else picture("RGBA" if mode in ("RGBa", "PA") else "LA" if mode == "La" else "RGB").convert(mode)
    )
    np.testing.assert_array_equal(served(encoded_image(given)), np.asarray(opened_image(given)))


def test_pixels_are_sent_without_a_loss() -> None:
    """Arrays, RGB or grey, contiguous or not, reach the server unchanged; grey becomes three equal channels."""
    rgb = np.asarray(picture())
    np.testing.assert_array_equal(served(encoded_image(rgb)), rgb)
    turned = rgb[::-1, ::2].transpose(1, 0, 2)
    np.testing.assert_array_equal(served(encoded_image(turned)), turned)
    grey = rgb[..., 0]
    np.testing.assert_array_equal(served(encoded_image(grey)), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(np.asarray(opened_image(grey)), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
def test_a_picture_is_upright_however_it_is_given(tmp_path: Path, orientation: int | None) -> None:
    """A path, its bytes and an opened PIL image are one picture to the server, and the one that is drawn on."""
    data = jpeg(orientation)
    path = tmp_path / "turned.jpg"
    path.write_bytes(data)
    expected = served(data)
    with PIL.Image.open(path) as opened:
        for given in (path, data, opened):
            np.testing.assert_array_equal(served(encoded_image(given)), expected)
            np.testing.assert_array_equal(np.asarray(opened_image(given)), expected)
        assert opened.getexif().get(ORIENTATION) == orientation
    assert (expected.shape[0] == 7) == (orientation in (5, 6, 7, 8))


def test_transparent_parts_are_white() -> None:
    """What a cut-out hides is not uncovered, as by the server."""
    cut_out = PIL.Image.new("RGBA", (3, 2), (200, 10, 10, 0))
    assert opened_image(cut_out).getpixel((0, 0)) == (255, 255, 255)


def test_drawing_on_it_leaves_the_callers_picture_alone() -> None:
    """What is opened is a copy, even of an RGB picture or array."""
    given = picture()
    array = np.array(given)
    for one in (given, array):
        opened_image(one).paste((0, 0, 0), (0, 0, 7, 4))
    np.testing.assert_array_equal(np.asarray(given), np.asarray(picture()))
    np.testing.assert_array_equal(array, np.asarray(picture()))


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((4, 5, 3), np.float32), "dtype float32, expected uint8; multiply"),
        (np.zeros((4, 5, 3), np.int64), "dtype int64, expected uint8$"),
        (np.zeros((3, 40, 50), np.uint8), r"shape \(3, 40, 50\), expected .* move the channels"),
        (np.zeros((4, 5, 4), np.uint8), "remove the fourth channel"),
        (np.zeros((2, 4, 5, 3), np.uint8), "one by one"),
        (np.zeros(12, np.uint8), r"shape \(12,\)"),
        (np.zeros((0, 5, 3), np.uint8), "at least one pixel"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array: Any, why: str) -> None:  # noqa: ANN401
    """Another dtype or shape is not guessed at; the words say what was expected, and how to get there."""
    for read in (encoded_image, opened_image):
        with pytest.raises(ValueError, match=why):
            read(array)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_samples_without_a_white_are_refused(mode: str) -> None:
    """Nobody knows which value of a float or 32-bit sample is white."""
    for read in (encoded_image, opened_image):
        with pytest.raises(ValueError, match="value of white is unknown"):
            read(PIL.Image.new(mode, (2, 2)))


@pytest.mark.parametrize("url", ["https://example.org/cat.jpg", "HTTP://example.org", "data:image/png;base64,AAAA"])
def test_the_web_is_not_asked(url: str) -> None:
    """A URL is refused in words, instead of being taken for a file's name or fetched."""
    with pytest.raises(ValueError, match="is a URL, which is not downloaded"):
        encoded_image(url)


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A missing file is an OSError; a text file and what is no picture at all a TypeError."""
    with pytest.raises(FileNotFoundError):
        encoded_image(tmp_path / "missing.png")
    with pytest.raises(TypeError, match="mode 'rb'"):
        encoded_image(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the image has type int, expected a path, bytes"):
        encoded_image(3)  # type: ignore[arg-type]
    with pytest.raises(PIL.UnidentifiedImageError):
        opened_image(b"no picture")


def test_what_has_no_end_is_refused() -> None:
    """A file that goes on for ever is not read for ever."""

    class Endless(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            assert 0 < size <= MAX_FILE_BYTES + 1
            return bytes(size)

    with pytest.raises(ValueError, match="more than 268,435,456 bytes"):
        encoded_image(Endless())  # type: ignore[arg-type]
