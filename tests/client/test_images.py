from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from convmlp_client.images import MAX_FILE_BYTES, encoded_image, opened_image
from model.decode import DecodeLimits, decode
from tests.model.heif_files import irot, rewritten
from tests.model.heif_files import picture as heic

LIMITS = DecodeLimits(max_bytes=10**6, max_pixels=10**6)
ORIENTATION = 0x0112


def picture(mode: str = "RGB", width: int = 7, height: int = 4) -> PIL.Image.Image:
    """An image in which every pixel has another value."""
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
    """The pixels that the service decodes: uint8 (H, W, 3), RGB."""
    return decode(data, LIMITS).pixels


def test_files_and_bytes_are_sent_as_they_are(tmp_path: Path) -> None:
    """Paths, open files and bytes of any type are sent unchanged."""
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
def test_pil_images_of_any_mode_arrive_unchanged(mode: str) -> None:
    """For each mode of Pillow the service decodes the same pixels that results are drawn on."""
    given = (
        picture("L").convert("I;16")
        if mode == "I;16"
        else picture("RGBA" if mode in ("RGBa", "PA") else "LA" if mode == "La" else "RGB").convert(mode)
    )
    np.testing.assert_array_equal(served(encoded_image(given)), np.asarray(opened_image(given)))


def test_arrays_are_sent_without_loss() -> None:
    """RGB and grey arrays, contiguous or not, arrive unchanged. Grey becomes three equal channels."""
    rgb = np.asarray(picture())
    np.testing.assert_array_equal(served(encoded_image(rgb)), rgb)
    turned = rgb[::-1, ::2].transpose(1, 0, 2)
    np.testing.assert_array_equal(served(encoded_image(turned)), turned)
    grey = rgb[..., 0]
    np.testing.assert_array_equal(served(encoded_image(grey)), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(np.asarray(opened_image(grey)), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int | None) -> None:
    """A path, its bytes and an opened PIL image give the service the same upright pixels that results are drawn on."""
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


@pytest.mark.parametrize("form", ["heic", "turned heic", "avif", "tiff"])
def test_files_that_turn_themselves_are_turned_once(form: str) -> None:
    """HEIC and AVIF turn by boxes of their own, and Pillow turns a TIFF as it loads it: results are drawn upright."""
    if form.endswith("heic"):
        data = rewritten(heic("blocks"), [irot(1)] if "turned" in form else [])
    else:
        file, exif = io.BytesIO(), PIL.Image.Exif()
        exif[ORIENTATION] = 6
        options = {"quality": 100, "subsampling": "4:4:4"} if form == "avif" else {}
        picture().save(file, form, exif=exif, **options)
        data = file.getvalue()
    assert encoded_image(data) == data
    np.testing.assert_array_equal(np.asarray(opened_image(data)), served(data))


def test_transparent_parts_are_white() -> None:
    """Transparent pixels become white, as in the service."""
    cut_out = PIL.Image.new("RGBA", (3, 2), (200, 10, 10, 0))
    assert opened_image(cut_out).getpixel((0, 0)) == (255, 255, 255)


def test_opening_copies_the_image() -> None:
    """Drawing on the opened image does not change the caller's image or array."""
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
def test_arrays_of_another_form_are_an_error(array: Any, why: str) -> None:  # noqa: ANN401
    """Another dtype or shape raises ValueError with the expected form and how to convert."""
    for read in (encoded_image, opened_image):
        with pytest.raises(ValueError, match=why):
            read(array)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_float_and_32_bit_samples_are_an_error(mode: str) -> None:
    """Float and 32-bit samples raise ValueError, because their value of white is unknown."""
    for read in (encoded_image, opened_image):
        with pytest.raises(ValueError, match="value of white is unknown"):
            read(PIL.Image.new(mode, (2, 2)))


@pytest.mark.parametrize("url", ["https://example.org/cat.jpg", "HTTP://example.org", "data:image/png;base64,AAAA"])
def test_urls_are_an_error(url: str) -> None:
    """A URL raises ValueError. It is neither downloaded nor read as a file name."""
    with pytest.raises(ValueError, match="is a URL, which is not downloaded"):
        encoded_image(url)


def test_unreadable_images_are_an_error(tmp_path: Path) -> None:
    """A missing file raises OSError; a text file and other types raise TypeError; other bytes cannot be opened."""
    with pytest.raises(FileNotFoundError):
        encoded_image(tmp_path / "missing.png")
    with pytest.raises(TypeError, match="mode 'rb'"):
        encoded_image(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the image has type int, expected a path, bytes"):
        encoded_image(3)  # type: ignore[arg-type]
    with pytest.raises(PIL.UnidentifiedImageError):
        opened_image(b"no picture")


def test_reading_is_bounded() -> None:
    """A file without an end raises ValueError after the size limit."""

    class Endless(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            assert 0 < size <= MAX_FILE_BYTES + 1
            return bytes(size)

    with pytest.raises(ValueError, match="more than 268,435,456 bytes"):
        encoded_image(Endless())  # type: ignore[arg-type]
