"""Decoding in the decoder's memory: equal to decoding to an array, or at a reduced scale."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Callable

import numpy as np
import PIL.Image
import pytest

from model.decode import DecodeLimits, decode, decode_picture
from model.errors import ImageUndecodable
from model.pixels import as_array
from model.preprocess import content_size, prepare, prepare_picture
from model.spec import CenterCropSpec, KeepRatioSpec, Normalisation, Preprocessing
from model.types import Size
from tests.model.picture_files import RARE_JPEGS

LIMITS = DecodeLimits(max_bytes=1 << 24, max_pixels=10**7)
NORMALISATION = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CROP = CenterCropSpec(resize_shorter=40, crop=32, normalisation=NORMALISATION)
RATIO = KeepRatioSpec(long_side=96, short_side=64, pad_multiple=32, normalisation=NORMALISATION)
EXIF_TURNED = 6


def scene(width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    """Smooth waves of colour, as in photographs, unlike noise."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / (width / 7) + shift) * np.cos(y / (height / 5)) for shift in (0, 1, 2)]
    return PIL.Image.fromarray(np.stack(waves, axis=2).astype(np.uint8)).convert(mode)


def encoded(picture: PIL.Image.Image, image_format: str, orientation: int = 1) -> bytes:
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    picture.save(file, image_format, exif=exif)
    return file.getvalue()


def at_least(size: Size) -> Callable[[Size], Size]:
    return lambda _: size


@pytest.mark.parametrize("spec", [CROP, RATIO])
@pytest.mark.parametrize("orientation", [1, EXIF_TURNED])
@pytest.mark.parametrize(("mode", "image_format"), [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "GIF")])
@pytest.mark.parametrize("size", [(90, 61), (61, 90), (7, 5), (700, 20)])
def test_inputs_equal_those_of_the_decoded_image(
    size: tuple[int, int], mode: str, image_format: str, orientation: int, spec: Preprocessing
) -> None:
    """Preparing the decoder's picture gives the same input and geometry as preparing the decoded array."""
    data = encoded(scene(*size, mode), image_format, 1 if image_format == "GIF" else orientation)
    plain = prepare(decode(data, LIMITS), spec)
    direct = prepare_picture(decode_picture(data, LIMITS), spec)
    np.testing.assert_array_equal(direct.pixels, plain.pixels)
    assert direct.geometry == plain.geometry


@pytest.mark.parametrize(
    ("needed", "scaled"),
    [
        (Size(400, 600), Size(400, 600)),
        (Size(201, 300), Size(400, 600)),
        (Size(200, 300), Size(200, 300)),
        (Size(100, 150), Size(100, 150)),
        (Size(10, 10), Size(50, 75)),
        (Size(4000, 6000), Size(400, 600)),
    ],
)
@pytest.mark.parametrize("orientation", [1, EXIF_TURNED])
def test_a_jpeg_is_decoded_no_smaller_than_needed(needed: Size, scaled: Size, orientation: int) -> None:
    """At 1/2, 1/4 or 1/8 scale; sizes refer to the upright picture, whatever its orientation."""
    stored = scene(600, 400) if orientation == 1 else scene(400, 600)
    picture = decode_picture(encoded(stored, "JPEG", orientation), LIMITS, at_least(needed))
    assert as_array(picture.source).shape[:2] == (scaled.height, scaled.width)
    assert picture.original == Size(400, 600)


def test_a_lossless_jpeg_is_decoded_at_full_size() -> None:
    """It has no frequencies, of which a reduced scale would be made."""
    picture = decode_picture(b64decode(RARE_JPEGS["lossless"]), LIMITS, at_least(Size(2, 3)))
    assert as_array(picture.source).shape[:2] == (8, 12)


def test_other_formats_are_decoded_at_full_size() -> None:
    """Only JPEG has reduced-scale decoding."""
    picture = decode_picture(encoded(scene(600, 400), "PNG"), LIMITS, at_least(Size(10, 10)))
    assert as_array(picture.source).shape[:2] == (400, 600)


@pytest.mark.parametrize("spec", [CROP, RATIO])
def test_a_reduced_picture_gives_nearly_the_same_input(spec: Preprocessing) -> None:
    """The geometry is the original's and the pixels are close, so boxes are mapped correctly."""
    data = encoded(scene(1200, 801), "JPEG")
    picture = decode_picture(data, LIMITS, lambda size: content_size(size, spec))
    assert as_array(picture.source).shape[1] < 1200
    exact, fast = prepare(decode(data, LIMITS), spec), prepare_picture(picture, spec)
    assert fast.geometry == exact.geometry
    assert np.abs(fast.pixels.astype(int) - exact.pixels).mean() < 2


def test_a_truncated_jpeg_is_refused_at_reduced_scale() -> None:
    """Truncation is detected at every scale."""
    data = encoded(scene(600, 400), "JPEG")
    with pytest.raises(ImageUndecodable):
        decode_picture(data[: len(data) // 2], LIMITS, at_least(Size(10, 10)))
