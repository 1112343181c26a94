"""TIFF: layouts, samples, orientation, bounds, and what is named instead of read.

References: the samples that were written, Pillow, and OpenCV where it reads the form."""

from __future__ import annotations

from io import BytesIO
from typing import Literal

import cv2
import numpy as np
import PIL.Image
import pytest

from model.containers.header import MAX_HEADER_PARTS, MAX_PARTS
from model.decode import DecodeLimits, decode, read_header
from model.errors import ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.types import Size
from tests.model.picture_files import PHOTO, encoded, random_array
from tests.model.test_decode import LIMITS, TURNED, WHITE, blocks
from tests.model.test_pictures import by_opencv, by_pillow
from tests.model.tiff_files import DEFLATE, tiff

PIXELS = np.asarray(PHOTO)
GREY = random_array((47, 61))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [1, DEFLATE])
@pytest.mark.parametrize(
    ("part", "tiled"), [(None, False), ((1, 61), False), ((10, 61), False), ((16, 16), True), ((64, 80), True)]
)
def test_every_layout_gives_the_picture(
    order: Literal["<", ">"], big: bool, planar: bool, compression: int, part: tuple[int, int] | None, tiled: bool
) -> None:
    """Byte orders, BigTIFF, strips and tiles, together or in planes of their own."""
    data = tiff(PIXELS, order=order, big=big, planar=planar, compression=compression, part=part, tiled=tiled)
    assert read_header(data, LIMITS).size == Size(47, 61)
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, PIXELS)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_compression_gives_the_picture(compression: str, mode: str) -> None:
    """As Pillow reads its own files."""
    picture = PHOTO.convert(mode)
    data = encoded(picture, "TIFF", compression=compression)
    with PIL.Image.open(BytesIO(data)) as file:
        np.testing.assert_array_equal(decode(data, LIMITS).pixels, np.asarray(file.convert("RGB")))


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4", "packbits", "raw"])
def test_scanned_pages_are_read(compression: str) -> None:
    """Bilevel pages, as scanners compress them."""
    picture = PHOTO.convert("1")
    data = encoded(picture, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["P", "1", "LA", "RGBA"])
def test_opaque_modes_equal_pillows_plain_conversion(mode: str) -> None:
    """Palette, bilevel and opaque alpha."""
    picture = PHOTO.convert(mode)
    data = encoded(picture, "TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, DEFLATE])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_may_be_zero(
    order: Literal["<", ">"], compression: int, photometric: int, dtype: type[np.uint8 | np.uint16]
) -> None:
    """Photometric 0 is inverted; grey of 16 bits, which Pillow leaves as it is, too. The high byte is kept."""
    grey = random_array((47, 61), dtype)
    data = tiff(grey, order=order, compression=compression, photometric=photometric)
    high = grey if dtype is np.uint8 else (grey >> 8).astype(np.uint8)
    expected = high if photometric else 255 - high
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, DEFLATE])
def test_sixteen_bits_keep_their_high_byte(order: Literal["<", ">"], compression: int) -> None:
    """Colours of 16 bits, as in 16-bit PNGs."""
    colours = random_array((47, 61, 3), np.uint16)
    data = tiff(colours, order=order, compression=compression)
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, (colours >> 8).astype(np.uint8))


@pytest.mark.parametrize("compression", [1, DEFLATE])
@pytest.mark.parametrize(
    ("meaning", "half"),
    [(1, (227, 127, 127)), (2, (227, 127, 127)), (0, (200, 0, 0))],
    ids=["associated", "unassociated", "none"],
)
def test_alpha_is_composited_on_white(compression: int, meaning: int, half: tuple[int, int, int]) -> None:
    """Whether colours are multiplied by alpha already (1) or not (2). A sample without meaning (0) is ignored."""
    red = 100 if meaning == 1 else 200
    rgba = np.array([[(200, 0, 0, 255), (red, 0, 0, 128), (0, 0, 0, 0)]], np.uint8)
    data = tiff(rgba, compression=compression, tags={338: (meaning,)})
    expected = [(200, 0, 0), half, (0, 0, 0) if meaning == 0 else WHITE]
    np.testing.assert_allclose(decode(data, LIMITS).pixels[0].astype(int), expected, atol=1)


@pytest.mark.parametrize("meaning", [1, 2])
def test_grey_with_alpha_is_composited_on_white(meaning: int) -> None:
    """As colours are."""
    grey = np.array([[(200, 255), (100 if meaning == 1 else 200, 128), (0, 0)]], np.uint8)
    pixels = decode(tiff(grey, tags={338: (meaning,)}), LIMITS).pixels
    np.testing.assert_allclose(pixels[0, :, 0].astype(int), [200, 227, 255], atol=1)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("compression", [1, DEFLATE])
def test_every_orientation_comes_out_upright(orientation: int, compression: int) -> None:
    """The tag is applied once."""
    stored = np.ascontiguousarray(TURNED[orientation](blocks()))
    data = tiff(stored, compression=compression, tags={274: (orientation,)})
    assert read_header(data, LIMITS).size == Size(*stored.shape[:2])
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, blocks())


@pytest.mark.parametrize("orientation", [0, 9, 70_000])
def test_an_unknown_orientation_is_ignored(orientation: int) -> None:
    """The picture is shown as it is stored."""
    np.testing.assert_array_equal(decode(tiff(PIXELS, tags={274: (orientation,)}), LIMITS).pixels, PIXELS)


@pytest.mark.parametrize("params", [[], [cv2.IMWRITE_TIFF_COMPRESSION, 8], [cv2.IMWRITE_TIFF_PREDICTOR, 2]])
def test_files_of_opencv_are_read(params: list[int]) -> None:
    """With LZW and a predictor by default."""
    _, data = cv2.imencode(".tiff", PIXELS[:, :, ::-1], params)
    np.testing.assert_array_equal(decode(data.tobytes(), LIMITS).pixels, PIXELS)


@pytest.mark.parametrize(
    "data",
    [
        tiff(PIXELS),
        tiff(GREY, compression=DEFLATE),
        tiff(PIXELS, part=(32, 32), tiled=True),
        tiff(PIXELS, big=True),
        tiff(PIXELS, planar=True, tags={274: (6,)}),
        tiff(random_array((47, 61), np.uint16), photometric=0),
        encoded(PHOTO, "TIFF", compression="jpeg"),
        encoded(PHOTO.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        encoded(PHOTO.convert("P"), "TIFF"),
        encoded(PHOTO.convert("1"), "TIFF", compression="group4"),
    ],
)
def test_opencv_reads_the_same_pixels(data: bytes) -> None:
    """So both kinds of models get the same input."""
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_opencv(data))


@pytest.mark.parametrize(
    "data",
    [
        tiff(random_array((47, 61, 4)), photometric=5),
        tiff(random_array((47, 61, 4)), photometric=5, compression=DEFLATE),
        tiff(random_array((47, 61, 3)), photometric=6, tags={530: (1, 1)}),
    ],
    ids=["CMYK", "CMYK, deflate", "YCbCr"],
)
def test_cmyk_and_ycbcr_are_pillows(data: bytes) -> None:
    """OpenCV's differ by a grey level."""
    pixels = decode(data, LIMITS).pixels
    np.testing.assert_array_equal(pixels, by_pillow(data))
    np.testing.assert_allclose(pixels.astype(int), by_opencv(data), atol=1)


@pytest.mark.parametrize("photometric", [1, 3])
@pytest.mark.parametrize("bits", [2, 4])
def test_few_bits_are_pillows(bits: int, photometric: int) -> None:
    """Of these OpenCV reads palettes of 4 bits only."""
    packed = random_array((20, 8))
    colour_map = tuple(map(int, random_array((3 << bits,), np.uint16))) if photometric == 3 else ()
    data = tiff(packed, photometric=photometric, tags={256: (8 * 8 // bits,), 258: (bits,), 320: colour_map})
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_pillow(data))


def test_sixteen_bits_of_cmyk_are_pillows() -> None:
    """OpenCV does not read them."""
    data = tiff(random_array((47, 61, 4), np.uint16), photometric=5)
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_pillow(data))


def test_the_first_page_is_read() -> None:
    """Of several."""
    data = encoded(PHOTO, "TIFF", save_all=True, append_images=[PHOTO.rotate(180)])
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, PIXELS)


def test_what_is_not_needed_is_left_out() -> None:
    """Profiles, descriptions and private tags, whatever they contain, and a next page that leads nowhere."""
    data = encoded(PHOTO, "TIFF", icc_profile=bytes(100_000), description="II*\0" * 99, software="x" * 70_000)
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, PIXELS)
    strange = tiff(PIXELS, tags={700: (1,) * 9, 34665: (0xFFFFFFFF,), 50740: (8,)})
    np.testing.assert_array_equal(decode(strange, LIMITS).pixels, PIXELS)


def test_further_values_of_a_tag_are_left_out() -> None:
    """Pillow would warn of each, which callers could fill a log with."""
    tags = {259: (1, 2, 3), 262: (2, 2), 284: (1, 1), 256: (61, 5)}
    np.testing.assert_array_equal(decode(tiff(PIXELS, tags=tags), LIMITS).pixels, PIXELS)


@pytest.mark.parametrize("sizes", [(), (0,) * 5])
@pytest.mark.parametrize("compression", [1, DEFLATE])
def test_missing_sizes_of_strips_are_computed(sizes: tuple[int, ...], compression: int) -> None:
    """Old writers leave them out, or write zeros."""
    data = tiff(PIXELS, part=(10, 61), compression=compression, tags={279: sizes})
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, PIXELS)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, DEFLATE])
def test_a_colour_map_may_have_eight_bits(order: Literal["<", ">"], compression: int) -> None:
    """Old writers' have values to 255 instead of 65,535; as 16 bits they would all be black. OpenCV reads them so."""
    colours = random_array((3, 256))
    narrow, wide = (
        tiff(GREY, order=order, compression=compression, photometric=3, tags={320: tuple(map(int, values))})
        for values in (colours.ravel(), 257 * colours.ravel().astype(int))
    )
    for data in (narrow, wide):
        pixels = decode(data, LIMITS).pixels
        np.testing.assert_array_equal(pixels, colours.T[GREY])
        np.testing.assert_array_equal(pixels, by_opencv(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(PIXELS, tags={50706: (1,)}), "camera's raw file"),
        (tiff(PIXELS, tags={271: (1, 2), 330: (8,), 254: (1,)}), "camera's raw file"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(4) + tiff(PIXELS)[16:], "camera's raw file"),
        (tiff(PIXELS, tags={262: (32803,)}), "camera's raw file"),
        (b"IIRO\x08\0\0\0", r"camera's raw file \(ORF\)"),
        (
            tiff(PIXELS, tags={259: (6,)}),
            "TIFF with old-style JPEG compression is not supported; save it with 8 bits",
        ),
        (tiff(PIXELS, tags={259: (50000,)}), "TIFF with Zstandard compression"),
        (tiff(PIXELS, tags={259: (77,)}), "TIFF with compression 77 compression"),
        (tiff(PIXELS, tags={262: (8,)}), "TIFF with Lab samples"),
        (tiff(PIXELS, tags={262: (6,)}), "TIFF with uncompressed YCbCr samples"),
        (tiff(GREY, tags={339: (3,)}), "TIFF with signed or floating-point samples"),
        (tiff(GREY, tags={258: (32,)}), "TIFF with 32 bits a sample"),
        (tiff(random_array((9, 9, 7))), "TIFF with 7 samples a pixel"),
        (tiff(random_array((9, 9, 2), np.uint16)), r"TIFF with these samples \(bits 16 16, samples 2, photometric 1\)"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, words: str) -> None:
    """Cameras' raw files, compressions and samples: not called corrupt."""
    with pytest.raises(UnsupportedFormat, match=words):
        decode(data, LIMITS)


def test_jpeg_strips_have_one_scan() -> None:
    """A progressive strip would cost as often as it has scans."""
    strip = encoded(PHOTO, "JPEG", progressive=True, subsampling=0)
    data = tiff(np.frombuffer(strip, np.uint8)[None])
    changed = tiff(
        np.frombuffer(strip, np.uint8)[None],
        tags={256: (61,), 257: (47,), 258: (8, 8, 8), 259: (7,), 262: (6,), 277: (3,), 278: (47,), 530: (1, 1)},
    )
    assert len(data)
    with pytest.raises(UnsupportedFormat, match="JPEG strips in several scans"):
        decode(changed, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        tiff(PIXELS, tags={256: ()}),
        tiff(PIXELS, tags={256: (0,)}),
        tiff(PIXELS, tags={273: ()}),
        tiff(PIXELS, tags={278: (1,)}),
        tiff(PIXELS, tags={278: (0,)}),
        tiff(PIXELS, tags={273: (0xFFFFFF00,)}),
        tiff(PIXELS, tags={279: (1 << 30,)}),
        tiff(PIXELS, part=(10, 61), tags={273: (8,) * 5, 279: (5000,) * 5}),
        tiff(PIXELS, compression=DEFLATE, tags={279: (100,)}),
        tiff(PIXELS, tags={257: (48,)}),
        tiff(PIXELS, part=(16, 16), tiled=True, tags={322: (0,)}),
        tiff(PIXELS)[:-20],
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0+\0\x08\0\0" + b"\xff" * 8,
    ],
)
def test_damaged_files_are_undecodable(data: bytes) -> None:
    """Tags that are missing, contradict each other or lead out of the file; strips that are shared or cut."""
    with pytest.raises(ImageUndecodable):
        decode(data, LIMITS)


def test_parts_are_bounded() -> None:
    """More strips, tiles or tags than any writer makes are refused; the error has the limit and what to do."""
    rows = np.zeros((MAX_PARTS + 1, 1), np.uint8)
    with pytest.raises(ImageTooLarge, match=r"more than 16,384 strips or tiles, the limit; save it again"):
        read_header(tiff(rows, part=(1, 1)), LIMITS)
    with pytest.raises(ImageTooLarge, match=r"more than 1,024 tags"):
        read_header(tiff(GREY, tags={40_000 + one: (1,) for one in range(MAX_HEADER_PARTS)}), LIMITS)


def test_memory_and_work_are_bounded_from_the_directory() -> None:
    """A page of one strip takes that strip beside its picture; one of 16 bits takes more work. No pixel is decoded."""
    limits = DecodeLimits(1_000_000, 12_000_000)
    size = {256: (4000,), 257: (3000,), 278: (3000,), 259: (8,)}
    with pytest.raises(ImageTooLarge, match=r"decoding this TIFF takes [0-9,]+ bytes of memory; the limit is 76,"):
        read_header(tiff(PIXELS, tags=size), limits)
    read_header(tiff(PIXELS, part=(1, 61), tags={256: (4000,), 259: (8,)}), limits)
    with pytest.raises(ImageTooLarge, match=r"4000 x 4000 = 16,000,000 pixels"):
        read_header(tiff(PIXELS, tags=size | {257: (4000,), 278: (4000,)}), limits)
