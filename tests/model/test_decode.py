from __future__ import annotations

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import cv2
import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.containers.header import ImageFormat
from model.decode import DecodeLimits, decode, read_header
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.types import Size, UInt8Array
from tests.model.heif_files import picture
from tests.model.picture_files import PHOTO, PNG_SIGNATURE, bmp, encoded, exif, png_chunk, random_array, run_length_bmp

LIMITS = DecodeLimits(max_bytes=1_000_000, max_pixels=4_000_000)
WHITE = (255, 255, 255)


def blocks(rows: int = 3, columns: int = 2) -> UInt8Array:
    """Even squares of 16 px in different colours: every encoder and rotation keeps them exactly."""
    colours = np.random.default_rng(1).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return colours.repeat(16, axis=0).repeat(16, axis=1)


def png_header(width: int, height: int) -> bytes:
    return PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def tiff_orientation(orientation: int) -> PIL.Image.Exif:
    block = PIL.Image.Exif()
    block[0x0112] = orientation
    return block


SMALL = PIL.Image.fromarray(blocks())
SAMPLES = {
    "jpeg": encoded(PHOTO, "JPEG", exif=exif(6)),
    "jpeg progressive": encoded(PHOTO, "JPEG", progressive=True),
    "jpeg grey": encoded(PHOTO.convert("L"), "JPEG"),
    "jpeg cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "png": encoded(PHOTO, "PNG", exif=exif(6)),
    "png palette": encoded(PHOTO.convert("P"), "PNG", transparency=3),
    "png grey and alpha": encoded(PHOTO.convert("LA"), "PNG"),
    "png bilevel": encoded(PHOTO.convert("1"), "PNG"),
    "webp": encoded(PHOTO, "WEBP", exif=exif(6)),
    "webp lossless": encoded(PHOTO.convert("RGBA"), "WEBP", lossless=True),
    "bmp": encoded(PHOTO, "BMP"),
    "bmp palette": encoded(PHOTO.convert("P"), "BMP"),
    "gif": encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)]),
    "avif": encoded(PHOTO, "AVIF", exif=exif(6)),
    "avif and alpha": encoded(PHOTO.convert("LA").convert("RGBA"), "AVIF"),
    "heic": picture("photo"),
    "tiff": encoded(PHOTO, "TIFF", exif=tiff_orientation(6)),
    "tiff lzw": encoded(PHOTO.convert("RGBA"), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": encoded(PHOTO, "TIFF", compression="jpeg"),
    "tiff bilevel": encoded(PHOTO.convert("1"), "TIFF", compression="group4"),
}


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 100}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("JPEG", {"quality": 100, "subsampling": 0, "progressive": True}),
    ],
)
def test_every_format_gives_the_picture(image_format: str, options: dict[str, object]) -> None:
    """Each supported format decodes to the encoded picture: RGB, contiguous, exact if lossless."""
    upright = blocks()
    pixels = decode(encoded(PIL.Image.fromarray(upright), image_format, **options), LIMITS).pixels
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    if "quality" in options:
        assert pixels.shape == upright.shape
        np.testing.assert_allclose(pixels[8::16, 8::16], upright[8::16, 8::16], atol=6)
    else:
        np.testing.assert_array_equal(pixels, upright)


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [
        *product(["PNG", "GIF", "WEBP"], ["L", "P", "1", "LA", "RGBA"]),
        *product(["BMP"], ["L", "P", "1", "RGBA"]),
    ],
)
def test_opaque_modes_equal_pillows_plain_conversion(image_format: str, mode: str) -> None:
    """Grey, palette, bilevel and opaque alpha pictures equal Pillow's conversion to RGB."""
    picture = SMALL.convert(mode)
    options = {"lossless": True} if image_format == "WEBP" else {}
    pixels = decode(encoded(picture, image_format, **options), LIMITS).pixels
    np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    """A CMYK JPEG, whose samples Adobe stores inverted, decodes to its colours, not their negative."""
    pixels = decode(encoded(SMALL.convert("CMYK"), "JPEG", quality=100, subsampling=0), LIMITS).pixels
    np.testing.assert_allclose(pixels, blocks(), atol=6)


@pytest.mark.parametrize("low_byte", [0, 128, 255])
def test_sixteen_bits_are_scaled_and_not_clipped(low_byte: int) -> None:
    """16-bit grey and 16-bit colour give the high byte of each sample."""
    high = np.arange(256, dtype=np.uint16).reshape(16, 16)
    samples = (high << 8) | low_byte
    expected = np.repeat(high.astype(np.uint8)[:, :, None], 3, axis=2)
    for array in (samples, np.repeat(samples[:, :, None], 3, axis=2)):
        _, png = cv2.imencode(".png", array)
        np.testing.assert_array_equal(decode(png.tobytes(), LIMITS).pixels, expected)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(image_format: str) -> None:
    """Transparent pixels are white; half transparent ones are half white."""
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, :] = [(200, 0, 0, 0), (200, 0, 0, 128), (200, 0, 0, 255)]
    data = encoded(PIL.Image.fromarray(rgba), image_format, lossless=True, exact=True)
    pixels = decode(data, LIMITS).pixels[0]
    np.testing.assert_allclose(pixels, [WHITE, (227, 127, 127), (200, 0, 0)], atol=1)


@pytest.mark.parametrize(
    ("mode", "values", "transparency"),
    [
        ("P", [0, 1], 1),
        ("P", [0, 1], b"\xff\x00"),
        ("L", [0, 7], 7),
        ("1", [0, 1], 255),
        ("RGB", [(0, 0, 0), (1, 2, 3)], (1, 2, 3)),
    ],
)
def test_a_transparent_colour_is_white(
    mode: str, values: list[int] | list[tuple[int, int, int]], transparency: object
) -> None:
    """A palette entry or colour that a PNG declares transparent is white; other colours are kept."""
    picture = PIL.Image.new(mode, (2, 1))
    if mode == "P":
        picture.putpalette([0, 0, 0, 9, 9, 9])
    picture.putdata(values)
    pixels = decode(encoded(picture, "PNG", transparency=transparency), LIMITS).pixels
    assert pixels[0].tolist() == [[0, 0, 0], list(WHITE)]


TURNED = {
    # How a picture is stored under each orientation, undoing what its EXIF asks a viewer to do.
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[:, ::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_every_orientation_comes_out_upright(image_format: str, orientation: int) -> None:
    """A picture stored under any of the eight EXIF orientations gives the same array."""
    stored = PIL.Image.fromarray(np.ascontiguousarray(TURNED[orientation](blocks())))
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 100, "subsampling": 0}
    upright = decode(encoded(PIL.Image.fromarray(blocks()), image_format, **options), LIMITS)
    turned = decode(encoded(stored, image_format, exif=exif(orientation), **options), LIMITS)
    np.testing.assert_array_equal(turned.pixels, upright.pixels)


@pytest.mark.parametrize(("order", "kind"), [(">", 3), ("<", 4), (">", 4)])
def test_orientation_is_read_in_every_encoding(order: str, kind: int) -> None:
    """Either byte order, and a 16- or 32-bit value."""
    data = encoded(SMALL, "PNG", exif=exif(3, order, kind))
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, blocks()[::-1, ::-1])


@pytest.mark.parametrize(
    "damaged",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0XX*\0\x08\0\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x1a\x01\x05\x00\xff\xff\xff\xff\xff\xff\xff\xff" * 3,
        exif(6)[:-8],
        exif(0),
        exif(9),
        exif(70_000, kind=4),
    ],
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_is_ignored(image_format: str, damaged: bytes) -> None:
    """A truncated or invalid EXIF block leaves the picture as stored."""
    plain = decode(encoded(SMALL, image_format), LIMITS)
    np.testing.assert_array_equal(decode(encoded(SMALL, image_format, exif=damaged), LIMITS).pixels, plain.pixels)


def test_an_empty_body_is_undecodable() -> None:
    """No bytes are ImageUndecodable, and the message has the word "empty"."""
    with pytest.raises(ImageUndecodable, match="empty"):
        decode(b"", LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"a line of text",
        b"\0" * 100,
        b"%PDF-1.7",
        b"RIFF\0\0\0\0WAVEfmt ",
        encoded(SMALL, "ICO"),
        encoded(SMALL, "PPM"),
        b"\0\0\0\x1cftypzzzz",
    ],
)
def test_other_formats_are_refused(data: bytes) -> None:
    """Bytes in no supported format are refused; the error lists the supported formats."""
    with pytest.raises(UnsupportedFormat, match="JPEG, PNG, WebP, BMP, GIF, AVIF, HEIC, TIFF"):
        decode(data, LIMITS)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_undecodable(name: str, kept: float) -> None:
    """A truncated file is refused; no partial picture is decoded."""
    data = SAMPLES[name]
    # Only the first of the animation's two frames is needed.
    needed = len(data) // 2 if name == "gif" else len(data)
    with pytest.raises(ImageUndecodable):
        decode(data[: int(needed * kept)], LIMITS)


ODD = next(
    file
    for file in (encoded(SMALL.crop((0, 0, 8, height)), "WEBP", lossless=True) for height in range(4, 30))
    if file[16] & 1
)
WITHOUT_PIXELS = {
    "PNG without IEND": (encoded(SMALL, "PNG"), 12),
    "GIF without its trailer": (encoded(SMALL, "GIF"), 1),
    "WebP without its padding": (ODD, 1),
    "BMP of 24 bits without its last padding": (bmp(random_array((20, 87)), 24), 1),
    "BMP of 16 bits without its last padding": (bmp(random_array((20, 29), np.uint16), 16), 2),
    "BMP in run lengths without their end": (run_length_bmp(b"\5\7\0\0\5\6\0\0\0\1", (5, 2)), 2),
}


@pytest.mark.parametrize("name", WITHOUT_PIXELS)
def test_a_file_may_lack_what_has_no_pixels(name: str) -> None:
    """It has the pixels of the whole file; if a pixel is missing too, it is refused."""
    data, missing = WITHOUT_PIXELS[name]
    np.testing.assert_array_equal(decode(data[:-missing], LIMITS).pixels, decode(data, LIMITS).pixels)
    with pytest.raises(ImageUndecodable):
        decode(data[: -missing - 20], LIMITS)


def test_too_many_bytes_are_refused_unread() -> None:
    """The size limit is checked before the bytes are read."""
    with pytest.raises(ImageTooLarge, match=r"11 bytes.*10"):
        decode(b"not a image", DecodeLimits(max_bytes=10, max_pixels=10))


@pytest.mark.parametrize("name", SAMPLES)
def test_pixels_at_the_limit_pass_and_one_more_does_not(name: str) -> None:
    """The pixel limit holds for every format and counts height times width."""
    pixels = PHOTO.height * PHOTO.width
    decode(SAMPLES[name], DecodeLimits(LIMITS.max_bytes, pixels))
    with pytest.raises(ImageTooLarge):
        decode(SAMPLES[name], DecodeLimits(LIMITS.max_bytes, pixels - 1))


@pytest.mark.parametrize(
    "header",
    [
        png_header(50_000, 50_000) + png_chunk(b"IDAT", b""),
        b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, 60_000, 60_000, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
        b"\xff\xda\0\x0c\3\1\0\2\0\3\0\0\x3f\0",
        struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + b",\0\0\0\0\x01\0\x01\0\0\x02\0",
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b",\0\0\0\0" + b"\xff\xff\xff\xff\0\x02\0",
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b",\0\0\0\0" + b"\0\x30\0\x30\0\x02\0",
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xfe\x3f\0\xfe\x3f\0",
    ],
    ids=["png", "jpeg", "bmp", "gif", "gif frame", "gif frame below Pillow's own limit", "webp"],
)
def test_too_many_pixels_are_refused_from_the_header(header: bytes) -> None:
    """A header that declares a huge picture is refused; the files have no pixel data."""
    with pytest.raises(ImageTooLarge, match="pixels"):
        decode(header, LIMITS)


def test_a_jpeg_with_too_many_scans_is_refused() -> None:
    """A progressive JPEG with a great many short scans is not decoded; the error has the number, limit and advice."""
    data = encoded(PIL.Image.new("L", (1000, 1000)), "JPEG", progressive=True)
    assert decode(data, LIMITS).size == Size(1000, 1000)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    limits = DecodeLimits(10_000_000, LIMITS.max_pixels)
    with pytest.raises(ImageUndecodable, match="progression"):
        decode(data[:-2] + last_scan * 20 + data[-2:], limits)
    with pytest.raises(ImageTooLarge, match=r"scans .* [0-9,]+ pixels of a baseline JPEG; the limit is [0-9,]+;"):
        decode(data[:-2] + last_scan * 1300 + data[-2:], limits)


def compressed_zeros(millions: int) -> bytes:
    """A zlib stream of so many million zeros. One block is repeated: to compress all takes most of a second."""
    compressor = zlib.compressobj(9)
    block = compressor.compress(bytes(1_000_000)) + compressor.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">HH", millions * 1_000_000 % 65521, 1)
    return block[:2] + block[2:] * millions + b"\3\0" + checksum


@pytest.mark.parametrize(
    "extra",
    [
        png_chunk(b"acTL", struct.pack(">II", 0, 0)),
        png_chunk(b"acTL", b""),
        png_chunk(b"zTXt", b"key\0\0" + compressed_zeros(70)),
        png_chunk(b"tEXt", b"key\0value")[:-1] + b"!",
    ],
    ids=["animation of no frames", "empty animation header", "text that inflates", "text with a wrong checksum"],
)
def test_other_png_chunks_are_ignored(extra: bytes) -> None:
    """Animation and text chunks, valid or not, do not change the still picture."""
    data = encoded(SMALL, "PNG")
    end_of_header = len(png_header(1, 1))
    pixels = decode(data[:end_of_header] + extra + data[end_of_header:], LIMITS).pixels
    np.testing.assert_array_equal(pixels, blocks())


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(image_format: str) -> None:
    """Of several frames the first is decoded."""
    options = {"lossless": True} if image_format == "WEBP" else {}
    other = PIL.Image.new("RGB", SMALL.size, (1, 2, 3))
    data = encoded(SMALL, image_format, save_all=True, append_images=[other], **options)
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, blocks())


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_thin_pictures_decode(size: tuple[int, int]) -> None:
    """One pixel, one row and one column decode."""
    height, width = size
    for image_format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "AVIF", "TIFF"):
        assert decode(encoded(PIL.Image.new("RGB", (width, height)), image_format), LIMITS).size == Size(*size)


def test_a_picture_without_pixels_is_undecodable() -> None:
    """A header with zero width or height is ImageUndecodable."""
    for width, height in ((0, 5), (5, 0)):
        with pytest.raises(ImageUndecodable):
            decode(png_header(width, height) + png_chunk(b"IDAT", zlib.compress(b"")), LIMITS)


@pytest.mark.parametrize(
    ("name", "image_format"),
    [
        ("jpeg", ImageFormat.JPEG),
        ("png", ImageFormat.PNG),
        ("webp", ImageFormat.WEBP),
        ("bmp", ImageFormat.BMP),
        ("gif", ImageFormat.GIF),
        ("avif", ImageFormat.AVIF),
        ("heic", ImageFormat.HEIC),
        ("tiff", ImageFormat.TIFF),
    ],
)
def test_a_header_has_the_format_and_the_size_as_stored(name: str, image_format: ImageFormat) -> None:
    """The header gives the format and the stored size, without orientation."""
    header = read_header(SAMPLES[name], LIMITS)
    assert (header.format, header.size) == (image_format, Size(PHOTO.height, PHOTO.width))


def test_reading_a_header_decodes_nothing() -> None:
    """A picture without pixel data has a header; decoding it fails."""
    data = SAMPLES["png"][:-200]
    assert read_header(data, LIMITS).size == Size(PHOTO.height, PHOTO.width)
    with pytest.raises(ImageUndecodable):
        decode(data, LIMITS)


def test_threads_are_independent() -> None:
    """Pictures processed at the same time give what each gives alone."""
    jobs = [*SAMPLES.values(), *(data[: len(data) // 3] for data in SAMPLES.values())] * 10

    def attempt(data: bytes) -> UInt8Array | str:
        try:
            return decode(data, LIMITS).pixels
        except ImageUndecodable as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        for data, outcome in zip(jobs, pool.map(attempt, jobs), strict=True):
            np.testing.assert_array_equal(outcome, attempt(data))


@given(
    name=st.sampled_from(sorted(SAMPLES)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=8),
    early=st.booleans(),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@settings(max_examples=400, derandomize=True, deadline=None)
def test_damaged_bytes_decode_or_are_refused(
    name: str, flips: list[tuple[float, int]], early: bool, kept: float
) -> None:
    """Whatever bytes are changed or missing, the result is a picture or a domain error."""
    data = bytearray(SAMPLES[name])
    reach = min(len(data), 64) if early else len(data)
    for place, change in flips:
        data[int(place * reach)] ^= change
    try:
        image = decode(bytes(data[: int(len(data) * kept)]), LIMITS)
    except ConvMLPError:
        return
    assert image.pixels.shape == (image.size.height, image.size.width, 3)
