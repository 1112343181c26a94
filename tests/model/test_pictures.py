"""The pixels of each kind of file, against the libraries that the models' authors read with: docs/pictures.md."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decode import DecodeLimits, decode
from model.errors import ImageUndecodable
from model.reference import REFERENCE_PICTURE
from model.types import Reader, UInt8Array
from tests.model.picture_files import (
    BIT_FIELDS,
    PHOTO,
    RARE_JPEGS,
    as_file,
    bmp,
    encoded,
    exif,
    gif_on_screen,
    os2_bmp,
    png,
    png_chunk,
    random_array,
    run_length_bmp,
    ycck_jpeg,
)

LIMITS = DecodeLimits(max_bytes=1_000_000, max_pixels=4_000_000)
LARGE = PIL.Image.open(REFERENCE_PICTURE).convert("RGB").resize((200, 150))
SIZES = ((1, 1), (2, 2), (3, 1), (1, 3), (7, 5), (8, 8), (9, 17), (16, 16), (17, 16), (33, 31))
ORIENTATIONS = range(1, 9)
RGB555, RGB565 = (0x7C00, 0x03E0, 0x001F), (0xF800, 0x07E0, 0x001F)


def by_opencv(data: bytes) -> UInt8Array:
    picture = cv2.imdecode(as_file(data), cv2.IMREAD_COLOR_RGB)
    assert picture is not None
    return np.asarray(picture, np.uint8)


def by_pillow(data: bytes) -> UInt8Array:
    """Upright."""
    with PIL.Image.open(BytesIO(data)) as file:
        return np.asarray(PIL.ImageOps.exif_transpose(file).convert("RGB"))


def sampled(factor: int) -> bytes:
    """A JPEG whose colours have another resolution than its brightness."""
    _, data = cv2.imencode(".jpg", np.asarray(PHOTO)[:, :, ::-1], [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor])
    return data.tobytes()


JPEGS = {
    **{
        f"quality {quality} subsampling {subsampling} progressive {progressive}": encoded(
            PHOTO, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive
        )
        for quality, subsampling, progressive in product((30, 75, 98), (0, 1, 2), (False, True))
    },
    "4:1:1": sampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
    "4:4:0": sampled(cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
    "grey": encoded(PHOTO.convert("L"), "JPEG"),
    "grey progressive": encoded(PHOTO.convert("L"), "JPEG", progressive=True),
    "RGB": encoded(PHOTO, "JPEG", keep_rgb=True),
    "restarts": encoded(PHOTO, "JPEG", restart_marker_blocks=2),
    **{name: b64decode(text) for name, text in RARE_JPEGS.items() if name != "lossless grey"},
    **{f"{width} x {height}": encoded(LARGE.resize((width, height)), "JPEG") for width, height in SIZES},
    **{f"orientation {value}": encoded(PHOTO, "JPEG", exif=exif(value)) for value in ORIENTATIONS},
}
PNGS = {
    **{mode: encoded(PHOTO.convert(mode), "PNG") for mode in ("1", "L", "P", "RGB", "LA", "RGBA")},
    **{f"palette of {colours}": encoded(PHOTO.quantize(colours), "PNG") for colours in (2, 4, 16)},
    **{f"grey of {depth} bits": png(random_array((20, 30)) >> 8 - depth, depth) for depth in (1, 2, 4)},
    **{
        f"interlaced, {depth} bits": png(random_array((21, 30), np.uint16) >> 16 - depth, depth, interlaced=True)
        for depth in (1, 2, 4, 8)
    },
    **{
        f"interlaced colours, {width} x {height}": png(random_array((height, width, 3)), 8, interlaced=True)
        for width, height in SIZES
    },
    "16 bits RGB interlaced": png(random_array((21, 30, 3), np.uint16), 16, interlaced=True),
    "16 bits RGB": png(random_array((20, 30, 3), np.uint16), 16),
    "colour space": png(
        random_array((20, 30, 3)),
        8,
        png_chunk(b"gAMA", (45455).to_bytes(4, "big")),
        png_chunk(b"sBIT", b"\5\6\5"),
        png_chunk(b"pHYs", bytes(9)),
    ),
    **{f"orientation {value}": encoded(PHOTO, "PNG", exif=exif(value)) for value in ORIENTATIONS},
}
WEBPS = {
    "lossy": encoded(PHOTO, "WEBP"),
    "lossless": encoded(PHOTO, "WEBP", lossless=True),
    **{f"{width} x {height}": encoded(LARGE.resize((width, height)), "WEBP") for width, height in SIZES},
    **{f"orientation {value}": encoded(PHOTO, "WEBP", exif=exif(value)) for value in ORIENTATIONS},
}
GIFS = {
    "photo": encoded(PHOTO, "GIF"),
    "interlaced": encoded(PHOTO.quantize(64), "GIF", interlace=1),
    "bilevel": encoded(PHOTO.convert("1"), "GIF"),
    "animation": encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)]),
}
BMPS = {
    **{
        f"palette of {bits} bits": bmp(
            random_array((20, (30 * bits + 7) // 8)), bits, palette=random_array((4 << bits,)).tobytes()
        )
        for bits in (1, 4, 8)
        if 30 * bits % 8 == 0
    },
    "palette": encoded(PHOTO.quantize(16), "BMP"),
    "bilevel": encoded(PHOTO.convert("1"), "BMP"),
    "24 bits": bmp(random_array((20, 90)), 24),
    "24 bits of OS/2": os2_bmp(random_array((20, 87))),
    "24 bits from the top": bmp(random_array((20, 90)), 24, height=-20),
    "32 bits": bmp(random_array((20, 30), np.uint32), 32),
    "32 bits from the top": bmp(random_array((20, 30), np.uint32), 32, height=-20),
    "32 bits with the usual masks": bmp(random_array((20, 30), np.uint32), 32, BIT_FIELDS, (0xFF0000, 0xFF00, 0xFF)),
}
EQUAL_TO_BOTH = {
    f"{image_format} {name}": data
    for image_format, files in (("JPEG", JPEGS), ("PNG", PNGS), ("WebP", WEBPS), ("GIF", GIFS), ("BMP", BMPS))
    for name, data in files.items()
}


@pytest.mark.parametrize("name", EQUAL_TO_BOTH)
def test_pixels_are_those_of_pillow_and_of_opencv(name: str) -> None:
    """Most files have the same pixels for all: for either reader here, in Pillow and in OpenCV, upright."""
    data = EQUAL_TO_BOTH[name]
    for_classifiers = decode(data, LIMITS, Reader.PILLOW).pixels
    np.testing.assert_array_equal(for_classifiers, by_pillow(data))
    np.testing.assert_array_equal(for_classifiers, by_opencv(data))
    np.testing.assert_array_equal(decode(data, LIMITS, Reader.OPENCV).pixels, for_classifiers)


@given(
    sides=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    quality=st.integers(1, 100),
    subsampling=st.integers(0, 2),
    grey=st.booleans(),
    options=st.fixed_dictionaries({"progressive": st.booleans(), "optimize": st.booleans()}),
    restart=st.integers(0, 5),
)
@settings(max_examples=150, derandomize=True, deadline=None)
def test_jpegs_of_any_options_are_equal_to_both(
    sides: tuple[int, int], quality: int, subsampling: int, grey: bool, options: dict[str, bool], restart: int
) -> None:
    """Whatever an encoder chose, all decoders compute the same."""
    picture = LARGE.resize(sides).convert("L" if grey else "RGB")
    chosen = options if grey else options | {"subsampling": subsampling}
    data = encoded(picture, "JPEG", quality=quality, restart_marker_blocks=restart, **chosen)
    pixels = decode(data, LIMITS).pixels
    np.testing.assert_array_equal(pixels, by_pillow(data))
    np.testing.assert_array_equal(pixels, by_opencv(data))


CMYK = encoded(PHOTO.convert("CMYK"), "JPEG", quality=95)
PIXELS_16 = random_array((20, 30), np.uint16)
OF_ONE_READER = {
    "CMYK": CMYK,
    "CMYK progressive": encoded(LARGE.convert("CMYK"), "JPEG", progressive=True),
    "CMYK on its side": encoded(PHOTO.convert("CMYK"), "JPEG", exif=exif(6)),
    "YCCK": ycck_jpeg(CMYK),
    "16 bits": bmp(PIXELS_16, 16),
    "16 bits, an odd row": bmp(PIXELS_16[:, :29], 16),
    "16 bits from the top": bmp(PIXELS_16, 16, height=-20),
    "5-5-5 bits": bmp(PIXELS_16, 16, BIT_FIELDS, RGB555),
    "5-6-5 bits": bmp(PIXELS_16, 16, BIT_FIELDS, RGB565),
}


@pytest.mark.parametrize("name", OF_ONE_READER)
def test_a_model_gets_the_pixels_of_its_authors_library(name: str) -> None:
    """Of CMYK JPEGs and of 16-bit BMPs Pillow and OpenCV make different colours: a model gets those of its own."""
    data = OF_ONE_READER[name]
    pillow, opencv = by_pillow(data), by_opencv(data)
    assert (pillow != opencv).any()
    np.testing.assert_array_equal(decode(data, LIMITS, Reader.PILLOW).pixels, pillow)
    np.testing.assert_array_equal(decode(data, LIMITS, Reader.OPENCV).pixels, opencv)


def test_sixteen_bits_of_grey_are_opencvs() -> None:
    """Pillow would clip 16-bit grey at 255, which shows nothing; the high byte is OpenCV's value."""
    data = png(random_array((20, 30), np.uint16), 16)
    for reader in Reader:
        np.testing.assert_array_equal(decode(data, LIMITS, reader).pixels, by_opencv(data))


def test_a_lossless_grey_jpeg_is_pillows() -> None:
    """OpenCV does not decode it."""
    data = b64decode(RARE_JPEGS["lossless grey"])
    for reader in Reader:
        np.testing.assert_array_equal(decode(data, LIMITS, reader).pixels, by_pillow(data))


MASKS = {
    "444": (16, (0xF00, 0xF0, 0xF)),
    "655": (16, (0xFC00, 0x3E0, 0x1F)),
    "565 reversed": (16, (0x1F, 0x7E0, 0xF800)),
    "RGBX": (32, (0xFF, 0xFF00, 0xFF0000)),
    "XBGR": (32, (0xFF000000, 0xFF0000, 0xFF00)),
    "10 bits": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "one bit": (16, (0x8000, 0x10, 0x1)),
    "no blue": (16, (0xF800, 0x7E0, 0)),
}


def masked(values: npt.NDArray[np.uint64], mask: int) -> UInt8Array:
    """The field of a mask, 0 to 255: more than 8 bits give the highest, fewer are scaled, rounding down."""
    lowest = mask & -mask
    if not mask:
        return np.zeros(values.shape, np.uint8)
    fields, largest = (values & mask) // lowest, mask // lowest
    levels = fields * 255 // largest if largest < 256 else fields >> largest.bit_length() - 8
    return levels.astype(np.uint8)


@pytest.mark.parametrize("header_bytes", [40, 52, 124])
@pytest.mark.parametrize("name", MASKS)
def test_bit_fields_are_read_by_their_masks(name: str, header_bytes: int) -> None:
    """A BMP may have any masks, behind its header or in it. Pillow refuses these, OpenCV ignores or refuses them."""
    bits, masks = MASKS[name]
    values = random_array((20, 30), np.uint16 if bits == 16 else np.uint32)
    data = bmp(values, bits, BIT_FIELDS, masks, header_bytes=header_bytes)
    wide = values[::-1].astype(np.uint64)
    expected = np.dstack([masked(wide, mask) for mask in masks])
    for reader in Reader:
        np.testing.assert_array_equal(decode(data, LIMITS, reader).pixels, expected)


ARGB, ARGB1555 = (0xFF0000, 0xFF00, 0xFF, 0xFF000000), (*RGB555, 0x8000)


@pytest.mark.parametrize("reader", Reader)
def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque(reader: Reader) -> None:
    """Writers leave the fourth byte empty, and viewers show such files. One alpha that is not 0 gives them all meaning:
    the picture is then composited on white."""
    values = random_array((20, 30), np.uint32) & 0xFFFFFF
    opaque = bmp(values, 32, BIT_FIELDS, ARGB, header_bytes=108)
    np.testing.assert_array_equal(decode(opaque, LIMITS, reader).pixels, by_opencv(opaque))
    values[3, 4] |= 0xFF000000
    pixels = decode(bmp(values, 32, BIT_FIELDS, ARGB, header_bytes=108), LIMITS, reader).pixels
    seen = np.full((20, 30, 3), 255, np.uint8)
    seen[16, 4] = by_opencv(opaque)[16, 4]
    np.testing.assert_array_equal(pixels, seen)


@pytest.mark.parametrize(("alpha", "expected"), [(0, (227, 127, 127)), (0x7F000000, (200, 0, 0))])
def test_the_alpha_of_a_bmp_is_composited_on_white(alpha: int, expected: tuple[int, int, int]) -> None:
    """As that of other formats; within a grey level."""
    values = np.array([[0x80C80000 + alpha, 0xFFC80000]], np.uint32)
    pixels = decode(bmp(values, 32, BIT_FIELDS, ARGB, header_bytes=108), LIMITS).pixels
    np.testing.assert_allclose(pixels[0], [expected, (200, 0, 0)], atol=1)


def test_one_bit_of_alpha_is_alpha() -> None:
    """A 16-bit BMP may declare its highest bit to be alpha."""
    pixels = decode(bmp(np.array([[0x7C00, 0x8000]], np.uint16), 16, BIT_FIELDS, ARGB1555, header_bytes=56), LIMITS)
    assert pixels.pixels[0].tolist() == [[255, 255, 255], [0, 0, 0]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_is_compared_at_its_depth(depth: int) -> None:
    """Only samples equal to the key, in all their bits, are white."""
    samples = random_array((20, 30), np.uint16) >> 16 - depth
    key = int(samples[3, 4])
    samples[3, 5] = key ^ 1
    pixels = decode(png(samples, depth, png_chunk(b"tRNS", key.to_bytes(2, "big"))), LIMITS).pixels
    expected = (samples * 255 // ((1 << depth) - 1) if depth < 8 else samples >> depth - 8).astype(np.uint8)
    expected[samples == key] = 255
    np.testing.assert_array_equal(pixels, expected[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_is_compared_at_its_depth(depth: int, interlaced: bool) -> None:
    """Only pixels equal to the key, in all bits of all samples, are white."""
    samples = random_array((20, 30, 3), np.uint16) >> 16 - depth
    key = samples[3, 4].copy()
    samples[5:9, 6:8] = key
    samples[3, 5], samples[3, 6], samples[3, 7] = key ^ (1, 0, 0), key ^ (0, 0, 1), key ^ (0, 1 << depth - 1, 0)
    data = png(samples, depth, png_chunk(b"tRNS", key.astype(">u2").tobytes()), interlaced=interlaced)
    expected = (samples >> depth - 8).astype(np.uint8)
    expected[(samples == key).all(axis=2)] = 255
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, expected)


def test_unused_bits_of_a_transparent_colour_are_ignored() -> None:
    """A key always has 16 bits; of a picture of 8 bits the upper ones mean nothing."""
    samples = random_array((20, 30))
    data = png(samples, 8, png_chunk(b"tRNS", bytes([0xFF, samples[3, 4]])))
    assert (decode(data, LIMITS).pixels[samples == samples[3, 4]] == 255).all()


RUNS = b"".join(bytes([7, row, 0, 4, 1, 200, 3, row, 2, 9]) + b"\0\0" for row in range(20)) + b"\0\1"
RUN_LENGTHS = {
    "runs and single pixels": run_length_bmp(RUNS, (13, 20)),
    "from the top": run_length_bmp(RUNS, (13, -20)),
    "16 colours": run_length_bmp(b"\5\x12\0\5\x34\x56\x70\0\0\0\x0a\xbc\0\1", (10, 2), 4),
    "skipped pixels": run_length_bmp(b"\3\7\0\2\2\1\5\5\0\0\x0a\6\0\1", (10, 3)),
    "short rows": run_length_bmp(b"\3\7\0\0\4\5\0\0\0\1", (10, 2)),
}


@pytest.mark.parametrize("name", RUN_LENGTHS)
def test_run_lengths_are_equal_to_both(name: str) -> None:
    """Pixels that are skipped have the palette's first colour."""
    data = RUN_LENGTHS[name]
    pixels = decode(data, LIMITS).pixels
    np.testing.assert_array_equal(pixels, by_pillow(data))
    np.testing.assert_array_equal(pixels, by_opencv(data))


@pytest.mark.parametrize("codes", [RUNS[:-20], b"\x0e" + RUNS[1:], RUNS[:4] + b"\0\2\0\x21" + RUNS[4:], b""])
def test_damaged_run_lengths_are_undecodable(codes: bytes) -> None:
    """They are truncated, or lead out of a row or of the picture."""
    with pytest.raises(ImageUndecodable, match="the BMP is truncated or corrupt"):
        decode(run_length_bmp(codes, (13, 20)), LIMITS)


@pytest.mark.parametrize("reader", Reader)
def test_around_a_small_frame_a_gif_is_white(reader: Reader) -> None:
    """The first frame may be smaller than the screen: nothing is shown around it, and where it is transparent."""
    frame = PHOTO.quantize(16)
    data = gif_on_screen(encoded(frame, "GIF", transparency=3), (90, 70), (5, 6))
    expected = np.full((70, 90, 3), 255, np.uint8)
    shown = np.asarray(frame.convert("RGB")).copy()
    shown[np.asarray(frame) == 3] = 255
    expected[6 : 6 + PHOTO.height, 5 : 5 + PHOTO.width] = shown
    np.testing.assert_array_equal(decode(data, LIMITS, reader).pixels, expected)


def test_an_interlaced_frame_of_a_gif_lies_on_its_screen() -> None:
    """Its rows come in another order."""
    plain, interlaced = (encoded(PHOTO.quantize(16), "GIF", interlace=value) for value in (0, 1))
    pixels, others = (decode(gif_on_screen(gif, (90, 70), (5, 6)), LIMITS).pixels for gif in (plain, interlaced))
    np.testing.assert_array_equal(pixels, others)
