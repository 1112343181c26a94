"""Headers, and the walk through a container before its decoder: bounds, and what is left out.

Reference: Pillow, which decodes the whole file."""

from __future__ import annotations

import base64
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO

import numpy as np
import pi_heif
import PIL.Image
import PIL.ImageOps
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.containers.header import MAX_HEADER_PARTS, MAX_PARTS
from model.containers.jpeg import SEARCHED_BYTES
from model.decode import DecodeLimits, decode, read_header
from model.errors import ConvMLPError, ImageTooLarge, ImageUndecodable
from model.types import Size, UInt8Array
from tests.model.heif_files import grid_of, picture
from tests.model.picture_files import PHOTO, PNG_SIGNATURE, RARE_JPEGS, encoded, exif, png_chunk
from tests.model.test_decode import LIMITS, SAMPLES, png_header

pi_heif.register_heif_opener()

JPEG = encoded(PHOTO, "JPEG", quality=90)
PROGRESSIVE = encoded(PHOTO, "JPEG", progressive=True)
PNG = encoded(PHOTO, "PNG")
HEADER_END = len(png_header(1, 1))
"""Of a PNG's first chunk."""


def by_pillow(data: bytes) -> UInt8Array:
    """Upright, on white."""
    with PIL.Image.open(BytesIO(data)) as file:
        picture = PIL.ImageOps.exif_transpose(file)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        on_white = PIL.Image.new("RGB", picture.size, (255, 255, 255))
        on_white.paste(rgba, mask=rgba)
        return np.asarray(on_white)
    return np.asarray(picture.convert("RGB"))


def jpeg_segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg: bytes, segments: bytes) -> bytes:
    """A JPEG with segments before all others."""
    return jpeg[:2] + segments + jpeg[2:]


def webp_file(*chunks: bytes) -> bytes:
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def webp_chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def sides(width: int, height: int) -> bytes:
    return (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


@pytest.mark.parametrize("name", SAMPLES)
def test_pixels_are_those_of_the_whole_file(name: str) -> None:
    """What is left out of a file, and how its pixels are converted and turned, changes no pixel."""
    np.testing.assert_array_equal(decode(SAMPLES[name], LIMITS).pixels, by_pillow(SAMPLES[name]))


@pytest.mark.parametrize(
    "data",
    [
        encoded(PHOTO, "JPEG", keep_rgb=True),
        encoded(PHOTO.convert("CMYK"), "JPEG", progressive=True),
        encoded(PHOTO, "JPEG", restart_marker_blocks=2),
        encoded(PHOTO, "JPEG", progressive=True, restart_marker_blocks=2),
        encoded(PHOTO, "JPEG", icc_profile=bytes(200_000), comment=b"\xff\xda" * 100, exif=exif(8)),
        with_segments(
            JPEG, jpeg_segment(0xFE, b"\xff\xd9") + b"\xff\xff\xff" + jpeg_segment(0xE2, JPEG[:200]) + b"junk"
        ),
        with_segments(JPEG, jpeg_segment(0xE1, exif(6)[:20]) + jpeg_segment(0xE1, b"Exif\0\0" + exif(6)[20:])),
        encoded(PHOTO, "WEBP", icc_profile=bytes(999), xmp=bytes(99), exif=exif(5)),
        encoded(PHOTO.convert("P"), "GIF", comment=b"," * 1000, transparency=7, disposal=2),
        encoded(PHOTO, "BMP") + bytes(100),
        encoded(PHOTO, "AVIF", icc_profile=bytes(999), xmp=bytes(99), exif=exif(5)) + bytes(100),
    ],
    ids=[
        "rgb",
        "cmyk",
        "restarts",
        "progressive restarts",
        "metadata",
        "odd",
        "exif in parts",
        "webp",
        "gif",
        "bmp",
        "avif",
    ],
)
def test_what_decoding_needs_is_kept(data: bytes) -> None:
    """Colour transforms, restarts and orientation are kept; metadata may contain any bytes."""
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_pillow(data))


def test_segments_between_scans_are_left_out() -> None:
    """A comment between the scans of a progressive JPEG, whatever it contains, changes no pixel."""
    last = PROGRESSIVE.rindex(b"\xff\xda")
    data = PROGRESSIVE[:last] + jpeg_segment(0xFE, b"\xff\xda\xff\xd9" * 9) + PROGRESSIVE[last:]
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_pillow(PROGRESSIVE))


@pytest.mark.parametrize("shift", range(-2, 3))
def test_a_marker_is_found_across_the_pieces_that_are_searched(shift: int) -> None:
    """The end of a long scan, here by fill bytes, may lie before, on or behind the border of a piece."""
    start = PROGRESSIVE.rindex(b"\xff\xda")
    scan = len(PROGRESSIVE) - 2 - (start + 2 + int.from_bytes(PROGRESSIVE[start + 2 : start + 4], "big"))
    data = PROGRESSIVE[:-2] + b"\xff" * (SEARCHED_BYTES + shift - scan) + PROGRESSIVE[-2:]
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_pillow(PROGRESSIVE))


def test_orientation_behind_the_pixels_is_applied() -> None:
    """A PNG may have its EXIF block after its pixels."""
    data = PNG[:-12] + png_chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")) + PNG[-12:]
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, np.rot90(np.asarray(PHOTO), -1))


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("flags", [0x02, 0x12])
def test_a_frame_lies_on_its_canvas(flags: int, mode: str, lossless: bool) -> None:
    """An animation's first frame may be smaller than the canvas, with or without alpha in file and frame."""
    picture = PHOTO.convert(mode)
    if mode == "RGBA":
        picture.putalpha(PHOTO.convert("L"))
    still = encoded(picture, "WEBP", lossless=lossless)
    chunks = still[30:] if still[12:16] == b"VP8X" else still[12:]
    frame = bytes([3, 0, 0, 5, 0, 0]) + sides(*PHOTO.size) + bytes(4) + chunks
    data = webp_file(
        webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + sides(90, 70)),
        webp_chunk(b"ANIM", bytes(6)),
        webp_chunk(b"ANMF", frame),
        webp_chunk(b"ANMF", frame),
    )
    assert read_header(data, LIMITS).size == Size(70, 90)
    expected = by_pillow(data)
    if flags == 0x02:
        # Pillow makes the canvas black where the file has no alpha. Viewers show nothing there.
        framed, expected = expected[10 : 10 + PHOTO.height, 6 : 6 + PHOTO.width], np.full_like(expected, 255)
        expected[10 : 10 + PHOTO.height, 6 : 6 + PHOTO.width] = framed
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, expected)


TOO_MANY = {
    "jpeg": with_segments(JPEG, jpeg_segment(0xFE, b"") * MAX_HEADER_PARTS),
    "jpeg between scans": PROGRESSIVE[:-2] + jpeg_segment(0xFE, b"") * MAX_PARTS + PROGRESSIVE[-2:],
    "png": PNG[:HEADER_END] + png_chunk(b"tEXt", b"") * MAX_PARTS + PNG[HEADER_END:],
    "png before its header": PNG_SIGNATURE + png_chunk(b"tEXt", b"") * MAX_HEADER_PARTS + PNG[8:],
    "webp": webp_file(
        webp_chunk(b"VP8X", bytes(4) + sides(*PHOTO.size)),
        webp_chunk(b"XMP ", b"") * MAX_HEADER_PARTS,
        SAMPLES["webp"][30:],
    ),
    "gif": b"GIF89a" + bytes(7) + b"!\xfe" + b"\1," * MAX_HEADER_PARTS + b"\0" + SAMPLES["gif"][13:],
}


@pytest.mark.parametrize("name", TOO_MANY)
def test_parts_are_bounded(name: str) -> None:
    """A file of more parts than any encoder writes is refused; the error has the limit and what to do."""
    with pytest.raises(ImageTooLarge, match=r"has more than (1,024|16,384) .*; save it again"):
        decode(TOO_MANY[name], LIMITS)


def test_compressed_data_is_bounded_by_the_pixels() -> None:
    """A PNG whose compressed data is far longer than its pixels is refused: it could inflate to nothing for long."""
    data = png_header(1, 1) + png_chunk(b"IDAT", bytes(100_000)) + png_chunk(b"IEND", b"")
    with pytest.raises(ImageTooLarge, match=r"the PNG has 100,[0-9]+ bytes; the limit for its pixels is [0-9,]+"):
        decode(data, LIMITS)


def progressive_header(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"\1\x11\0\2\x11\0\3\x11\0"
    return b"\xff\xd8" + jpeg_segment(0xC2, frame) + jpeg_segment(0xDA, b"\3\1\0\2\0\3\0\0\0\0")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            progressive_header(4000, 3000),
            r"decoding this JPEG takes 120,[0-9,]+ bytes of memory; the limit is 76,[0-9,]+",
        ),
        (png_header(1, 12_000_000), r"decoding this PNG takes 168,[0-9,]+ bytes of memory; the limit is 76,[0-9,]+"),
        (
            PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4000, 3000, 16, 6, 0, 0, 1)),
            r"decoding this PNG takes the work of 1[0-9]{2},[0-9,]+ pixels of a baseline JPEG; the limit is 96,000,000",
        ),
    ],
    ids=["coefficients", "rows", "interlaced 16-bit"],
)
def test_memory_and_work_are_bounded_from_the_header(data: bytes, words: str) -> None:
    """As many pixels as the limit allows, in a form that takes too much; the files have no pixel data."""
    limits = DecodeLimits(1_000_000, 12_000_000)
    with pytest.raises(ImageTooLarge, match=words):
        read_header(data, limits)
    read_header(data, DecodeLimits(1_000_000, 50_000_000))


def test_the_bound_of_work_holds_for_the_worst_compressed_data() -> None:
    """Deflate's shortest blocks take more time a byte than usual ones, and cannot be counted without inflating them: a
    picture near the limit is refused for its length alone, in a PNG and in a TIFF."""
    header = PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1500, 1500, 16, 6, 0, 0, 0))
    limits = DecodeLimits(10_000_000, 2_250_000)
    usual = read_header(header + png_chunk(b"IDAT", bytes(2_000_000)), limits)
    assert usual.decode_cost < usual.worst_cost
    with pytest.raises(ImageTooLarge, match=r"decoding this PNG takes the work of 5[0-9],[0-9,]+ pixels"):
        read_header(header + png_chunk(b"IDAT", bytes(3_000_000)), limits)
    tiffs = {name: encoded(PHOTO, "TIFF", compression=name) for name in ("tiff_adobe_deflate", "tiff_lzw")}
    headers = {name: read_header(data, LIMITS) for name, data in tiffs.items()}
    assert headers["tiff_adobe_deflate"].worst_cost > headers["tiff_adobe_deflate"].decode_cost
    assert headers["tiff_lzw"].worst_cost == headers["tiff_lzw"].decode_cost


def sized(jpeg: bytes, frame: int, width: int, height: int) -> bytes:
    """A JPEG that declares another size."""
    at = jpeg.index(bytes([0xFF, frame])) + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def test_arithmetic_codes_are_bounded_by_pixels() -> None:
    """An arithmetic code may have next to no bytes, so pixels count, and in several scans each coefficient that one
    codes."""
    single, several = (base64.b64decode(RARE_JPEGS[name]) for name in ("arithmetic", "arithmetic progressive"))
    limits = DecodeLimits(1_000_000, 1_500_000)
    read_header(sized(single, 0xC9, 1500, 1000), limits)
    with pytest.raises(ImageTooLarge, match=r"decoding this JPEG takes the work of [0-9]+,[0-9,]+ pixels"):
        read_header(sized(single, 0xC9, 6000, 4000), DecodeLimits(1_000_000, 64_000_000))
    data = sized(several, 0xCA, 1500, 1000)
    read_header(data, limits)
    with pytest.raises(ImageTooLarge, match=r"decoding this JPEG with [0-9]+ scans or more takes the work of"):
        decode(data, limits)


def test_several_scans_take_more_memory_and_work() -> None:
    """A JPEG in several scans, progressive or not, keeps its coefficients; one in a single scan does not."""
    large = PHOTO.resize((800, 600))
    single, progressive = (read_header(encoded(large, "JPEG", progressive=p), LIMITS) for p in (False, True))
    assert single.decode_bytes < 6.1 * 800 * 600
    # 4:2:0: one and a half samples a pixel, of two bytes, beside Pillow's four.
    assert 7 * 800 * 600 <= progressive.decode_bytes < 7.2 * 800 * 600
    assert progressive.decode_cost > single.decode_cost


@pytest.mark.parametrize(
    "data",
    [
        JPEG[:2] + JPEG[JPEG.index(b"\xff\xda") :],
        JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9",
        with_segments(JPEG, JPEG[JPEG.index(b"\xff\xc0") : JPEG.index(b"\xff\xc4")]),
        with_segments(JPEG, b"\xff\xfe\0\1"),
        PROGRESSIVE[:-2],
        png_header(5, 5) + png_header(6, 6)[8:] + PNG[HEADER_END:],
        PNG_SIGNATURE,
        PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 8, 1, 0, 0, 0)),
        webp_file(webp_chunk(b"VP8X", bytes(4) + sides(5, 5))),
        webp_file(webp_chunk(b"VP8X", bytes(4) + sides(5, 5)), SAMPLES["webp"][30:]),
        webp_file(webp_chunk(b"VP8X", b"\2" + bytes(3) + sides(5, 5)), webp_chunk(b"ANMF", bytes(6) + sides(6, 5))),
        webp_file(),
        b"GIF89a" + bytes(7) + b";",
        b"GIF89a",
        b"BM" + bytes(10),
    ],
)
def test_damaged_containers_are_undecodable(data: bytes) -> None:
    """Parts that are missing, doubled, cut or contradict each other are the picture's fault, and no other error."""
    with pytest.raises(ImageUndecodable):
        decode(data, LIMITS)


@pytest.mark.parametrize(
    "data",
    [*SAMPLES.values(), webp_file(webp_chunk(b"VP8L", SAMPLES["webp lossless"][20:30]))],
    ids=[*SAMPLES, "short"],
)
def test_decoders_write_nothing(data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Callers cannot fill the log's stream with what decoders have to report about damaged pictures."""
    for start in range(12, len(data), max(len(data) // 40, 1)):
        with suppress(ConvMLPError):
            decode(data[:start] + bytes(min(30, len(data) - start)) + data[start + 30 :], LIMITS)
    assert capfd.readouterr() == ("", "")


@given(
    name=st.sampled_from(sorted(SAMPLES)),
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 6), st.binary(max_size=6)), min_size=1, max_size=6
    ),
    early=st.booleans(),
)
@settings(max_examples=600, derandomize=True, deadline=None)
def test_any_bytes_have_a_header_or_are_refused(name: str, edits: list[tuple[float, int, bytes]], early: bool) -> None:
    """Whatever is replaced, inserted or cut out, only domain errors are raised, and a picture has its header's size."""
    data = SAMPLES[name]
    for place, cut, inserted in edits:
        position = int(place * (min(len(data), 64) if early else len(data)))
        data = data[:position] + inserted + data[position + cut :]
    try:
        header = read_header(data, LIMITS)
        pixels = decode(data, LIMITS).pixels
    except ConvMLPError:
        return
    assert sorted(pixels.shape[:2]) == sorted((header.size.height, header.size.width))
    assert header.decode_bytes > 0
    assert header.decode_cost > 0


class Runner(threading.Thread):
    """A thread that counts how often it runs. It gives way each time, so others are not held up."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.runs = 0
        self.stopped = False

    def run(self) -> None:
        while not self.stopped:
            self.runs += 1
            time.sleep(0)


@pytest.fixture
def runner() -> Iterator[Runner]:
    """It runs only where another thread releases the GIL of its own accord: none is made to."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e6)
    thread = Runner()
    thread.start()
    yield thread
    thread.stopped = True
    sys.setswitchinterval(interval)
    thread.join()


LARGE: dict[str, Callable[[PIL.Image.Image], bytes]] = {
    "jpeg": lambda large: encoded(large, "JPEG", exif=exif(6)),
    "progressive": lambda large: encoded(large, "JPEG", progressive=True),
    "png": lambda large: encoded(large.convert("RGBA"), "PNG", compress_level=1),
    "webp": lambda large: encoded(large, "WEBP", method=0),
    "lossless webp": lambda large: encoded(large, "WEBP", lossless=True, method=0),
    "gif": lambda large: encoded(large.convert("P"), "GIF"),
    "bmp": lambda large: encoded(large, "BMP"),
    "avif": lambda large: encoded(large, "AVIF", speed=10),
    "heic": lambda _: grid_of(picture("tile"), 18, 25, 1600, 1152),
    "tiff": lambda large: encoded(large, "TIFF", compression="tiff_adobe_deflate"),
}
"""Files that take long to decode. Their tests make them, because every process of a run imports this module."""


@pytest.mark.parametrize("name", LARGE)
def test_other_threads_run_while_a_picture_is_decoded(name: str, runner: Runner) -> None:
    """Decoders, conversions and turning release the GIL."""
    data = LARGE[name](PHOTO.resize((1600, 1200)))
    limits = DecodeLimits(10_000_000, LIMITS.max_pixels)
    before = runner.runs
    for _ in range(100):  # on a busy machine the other thread may have no core while one picture is decoded
        decode(data, limits)
        if runner.runs > before:
            return
    raise AssertionError("no other thread ran while 100 pictures were decoded")
