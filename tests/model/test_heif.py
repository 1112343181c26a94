"""HEIC and AVIF: orientation, crops, tiles, alpha, and what their decoders must not get.

Reference: libheif, which reads the whole file and turns and crops it itself."""

from __future__ import annotations

import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pi_heif
import PIL.Image
import pytest

from model.containers import av1, heif, hevc
from model.containers.bitstream import Coding
from model.containers.header import MAX_HEADER_PARTS, ImageFormat
from model.containers.isobmff import NewItem, Property, Reference, box
from model.decode import DecodeLimits, decode, read_header
from model.errors import ImageTooLarge, ImageUndecodable, UnsupportedFormat
from model.types import Size, UInt8Array
from tests.model.heif_files import clap, grid_of, imir, irot, picture, prop, rewritten, size_property, still_of
from tests.model.picture_files import PHOTO, encoded, exif
from tests.model.test_decode import LIMITS, TURNED, blocks

ROOT = Path(__file__).resolve().parents[2]
BLOCKS_PIXELS = blocks(6, 4)
BLOCKS, CUTOUT, TILE = picture("blocks"), picture("cutout"), picture("tile")
AVIF = encoded(PHOTO, "AVIF", quality=90)
BY_ORIENTATION = {
    # The boxes of a picture that is stored so, in EXIF's numbers.
    1: [],
    2: [imir(1)],
    3: [irot(2)],
    4: [imir(0)],
    5: [irot(1), imir(0)],
    6: [irot(3)],
    7: [irot(3), imir(0)],
    8: [irot(1)],
}


def by_libheif(data: bytes) -> UInt8Array:
    """Upright, cropped, on white."""
    decoded = pi_heif.open_heif(data).to_pillow()
    on_white = PIL.Image.new("RGBA", decoded.size, "white")
    on_white.alpha_composite(decoded.convert("RGBA"))
    return np.asarray(on_white.convert("RGB"))


def exif_item(orientation: int) -> tuple[NewItem, Reference]:
    return NewItem(b"Exif", bytes(4) + exif(orientation).removeprefix(b"Exif\0\0"), []), Reference(b"cdsc", 2, (1,))


@pytest.mark.parametrize("orientation", TURNED)
def test_a_turned_heic_comes_out_upright_once(orientation: int) -> None:
    """Under each of the eight orientations, and with EXIF that declares the same, as phones write both."""
    item, reference = exif_item(orientation)
    data = rewritten(BLOCKS, BY_ORIENTATION[orientation], further=[item], references=[reference])
    pixels = decode(data, LIMITS).pixels
    np.testing.assert_array_equal(TURNED[orientation](pixels), BLOCKS_PIXELS)
    np.testing.assert_array_equal(pixels, by_libheif(data))


def test_exif_alone_does_not_turn_a_heic() -> None:
    """The boxes count (ISO/IEC 23008-12, 6.5.10): a viewer shows the picture as it is stored."""
    item, reference = exif_item(6)
    data = rewritten(BLOCKS, further=[item], references=[reference])
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, BLOCKS_PIXELS)


@pytest.mark.parametrize("turn", [[], [irot(1)], [irot(2)], [irot(3)]])
@pytest.mark.parametrize("mirror", [[], [imir(0)], [imir(1)]])
@pytest.mark.parametrize("mirrored_first", [False, True])
def test_transforms_apply_in_their_order(turn: list[Property], mirror: list[Property], mirrored_first: bool) -> None:
    """Whichever of rotation and mirror comes first, the pixels are libheif's."""
    data = rewritten(BLOCKS, [*mirror, *turn] if mirrored_first else [*turn, *mirror])
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_libheif(data))


@pytest.mark.parametrize("orientation", TURNED)
def test_a_turned_avif_comes_out_upright_once(orientation: int) -> None:
    """Pillow writes the boxes, and EXIF that declares the same."""
    stored = PIL.Image.fromarray(np.ascontiguousarray(TURNED[orientation](blocks())))
    data = encoded(stored, "AVIF", quality=100, subsampling="4:4:4", exif=exif(orientation))
    np.testing.assert_allclose(decode(data, LIMITS).pixels.astype(int), blocks(), atol=2)


@pytest.mark.parametrize("crop", [(20, 30, 0, 0), (21, 30, 5.5, -9), (64, 1, 0, 47.5), (64, 96, 0, 0)])
@pytest.mark.parametrize("turn", [[], [irot(1)]])
def test_a_crop_is_applied(crop: tuple[int, int, float, float], turn: list[Property]) -> None:
    """Before the rotation. The header has the size of what is left."""
    data = rewritten(BLOCKS, [clap(*crop), *turn])
    assert read_header(data, LIMITS).size == Size(crop[1], crop[0])
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, by_libheif(data))


def test_an_avif_is_cropped_too() -> None:
    """libavif itself leaves the crop to its caller."""
    whole = decode(AVIF, LIMITS).pixels
    data = rewritten(AVIF, [clap(21, 31, 2, -1)])
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, whole[7:38, 22:43])


@pytest.mark.parametrize(
    "properties",
    [[clap(80, 96)], [clap(64, 96, 1)], [prop(b"clap", bytes(32))], [prop(b"clap", b"")], [prop(b"irot", b"")]],
)
def test_a_crop_outside_of_the_picture_is_undecodable(properties: list[Property]) -> None:
    """A crop that is larger, elsewhere, empty or cut, or a rotation that is cut, is the picture's fault."""
    with pytest.raises(ImageUndecodable):
        decode(rewritten(BLOCKS, properties), LIMITS)


@pytest.mark.parametrize("name", ["blocks", "photo", "grey", "ten_bits", "cutout", "tile"])
def test_pixels_are_those_of_the_whole_file(name: str) -> None:
    """Colours, grey, ten bits a sample and alpha on white, as libheif decodes the whole file."""
    data = picture(name)
    np.testing.assert_allclose(decode(data, LIMITS).pixels.astype(int), by_libheif(data), atol=name == "cutout")


def test_alpha_is_composited_on_white() -> None:
    """The alpha plane is an item of its own."""
    alpha = np.arange(96).reshape(96, 1, 1) * 2 / 255
    expected = BLOCKS_PIXELS * alpha + 255 * (1 - alpha)
    np.testing.assert_allclose(decode(CUTOUT, LIMITS).pixels, expected, atol=1)


def test_colours_that_are_multiplied_by_alpha_are_not_multiplied_again() -> None:
    """The reference `prem` declares it."""
    still, _ = still_of(CUTOUT)
    (alpha,) = (still.items[one.source] for one in still.references if one.kind == b"auxl")
    references = [Reference(b"auxl", 2, (1,)), Reference(b"prem", 1, (2,))]
    further = [NewItem(alpha.kind, alpha.data(CUTOUT), alpha.properties)]
    data = rewritten(CUTOUT, further=further, references=references)
    white = 255 - np.arange(96).reshape(96, 1, 1) * 2
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, np.minimum(BLOCKS_PIXELS + white, 255))


@pytest.mark.parametrize("data", [TILE, encoded(PHOTO.resize((64, 64)), "AVIF")], ids=["heic", "avif"])
@pytest.mark.parametrize("turn", [[], [irot(3)]])
def test_tiles_are_joined(data: bytes, turn: list[Property]) -> None:
    """Phones store a picture as a grid of tiles, cut at the right and at the bottom."""
    tile = decode(data, LIMITS).pixels
    stored = np.tile(tile, (2, 3, 1))[:102, :150]
    grid = grid_of(data, 2, 3, 150, 102, turn)
    assert read_header(grid, LIMITS).size == Size(102, 150)
    pixels = decode(grid, LIMITS).pixels
    # Chroma is interpolated across the borders of tiles.
    difference = np.abs(pixels.astype(int) - (np.rot90(stored, -1) if turn else stored))
    assert np.mean(difference > 2) < 0.05


@pytest.mark.parametrize(
    "data",
    [
        grid_of(TILE, 2, 2, 128, 129),
        grid_of(TILE, 2, 2, 64, 128),
        grid_of(TILE, 2, 2, 128, 128, tiles=3),
        grid_of(TILE, 2, 2, 128, 128).replace(b"dimg", b"dimx"),
        rewritten(TILE, [size_property(64, 65)], kept=frozenset({b"hvcC"})),
        rewritten(TILE, [size_property(500, 500)], kept=frozenset({b"hvcC"})),
        rewritten(TILE, [size_property(0, 64)], kept=frozenset({b"hvcC"})),
        rewritten(AVIF, [size_property(2000, 2000)], kept=frozenset({b"av1C"})),
        rewritten(TILE, kept=frozenset({b"ispe"})),
        rewritten(TILE, kept=frozenset({b"hvcC"})),
        picture("photo")[:-1],
        AVIF[:-1],
        AVIF[: AVIF.index(b"meta") + 10],
        box(b"ftyp", b"heic", bytes(4), b"mif1"),
        box(b"ftyp", b"heic", bytes(4), b"mif1") + box(b"meta", bytes(4)),
        box(b"ftyp", b"avif", bytes(4), b"mif1") + struct.pack(">I4s", 4, b"meta"),
    ],
)
def test_contradictions_are_undecodable(data: bytes) -> None:
    """Tiles that do not fit, a size that is not the coded picture's, missing boxes and data that ends early."""
    with pytest.raises(ImageUndecodable):
        decode(data, LIMITS)


def test_the_coded_size_counts() -> None:
    """A container that declares few pixels around a large coded picture is refused before the decoder sees it."""
    large = encoded(PIL.Image.new("RGB", (1000, 900)), "AVIF")
    data = rewritten(large, [size_property(10, 10)], kept=frozenset({b"av1C"}))
    with pytest.raises(ImageUndecodable, match="the AVIF declares several sizes; save it again"):
        read_header(data, LIMITS)


def test_one_coded_picture_is_decoded() -> None:
    """Data of two frames, or of two pictures, is refused: each further one costs as much as the first."""
    _, item = still_of(AVIF)
    with pytest.raises(ImageUndecodable):
        decode(rewritten(AVIF, encoded=bytes(item.data(AVIF)) * 2), LIMITS)
    _, item = still_of(TILE)
    with pytest.raises(ImageUndecodable):
        decode(rewritten(TILE, encoded=bytes(item.data(TILE)) * 2), LIMITS)


def test_slices_count_as_work() -> None:
    """Each further slice of an HEVC picture may cover it again, so it is charged as if it did."""
    _, item = still_of(TILE)
    data = bytes(item.data(TILE))
    ((start, end), *_), _ = hevc.picture_slices(data, 4, 100)
    # Not the first one of its picture, by its first bit.
    further = data[start : start + 6] + bytes([data[start + 6] & 0x7F]) + data[start + 7 : end]
    plain = read_header(rewritten(TILE, encoded=data), LIMITS)
    sliced = read_header(rewritten(TILE, encoded=data + further * 10), LIMITS)
    assert sliced.decode_cost - plain.decode_cost >= 10 * heif.HEVC_SLICE_COST * 64 * 64


def test_parameter_sets_within_the_data_are_left_out() -> None:
    """They could declare another size than those that were checked."""
    _, item = still_of(TILE)
    configuration = item.first(b"hvcC")
    assert configuration is not None
    start = configuration.index(b"\x42\1\1")
    unit = configuration[start : start + int.from_bytes(configuration[start - 2 : start], "big")]
    encoded_data = struct.pack(">I", len(unit)) + unit + bytes(item.data(TILE))
    slices, units = hevc.picture_slices(encoded_data, 4, 100)
    assert len(slices) < units
    data = rewritten(TILE, encoded=encoded_data)
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, decode(TILE, LIMITS).pixels)


@pytest.mark.parametrize("field", [16, 17, 18])
def test_a_configuration_agrees_with_its_parameter_set(field: int) -> None:
    """Chroma format and depths of the box, by which memory is sized, are those that the coded picture declares."""
    _, item = still_of(TILE)
    configuration = item.first(b"hvcC")
    assert configuration is not None
    hevc.read_configuration(configuration)
    changed = configuration[:field] + bytes([configuration[field] ^ 2]) + configuration[field + 1 :]
    with pytest.raises(ValueError, match="contradicts"):
        hevc.read_configuration(changed)


def test_an_av1_configuration_agrees_with_its_sequence_header() -> None:
    """Depth, grey and subsampling."""
    _, item = still_of(AVIF)
    configuration = item.first(b"av1C")
    assert configuration is not None
    coding = av1.read_coding(bytes(item.data(AVIF)))
    av1.check_configuration(configuration, coding)
    for bit in (6, 4, 3, 2):
        changed = configuration[:2] + bytes([configuration[2] ^ 1 << bit]) + configuration[3:]
        with pytest.raises(ValueError, match="contradicts"):
            av1.check_configuration(changed, coding)


def test_parts_are_bounded() -> None:
    """A file of more boxes, items or parts than any encoder writes is refused; the error has the limit."""
    many = box(b"ftyp", b"heic", bytes(4), b"mif1") + box(b"free") * MAX_HEADER_PARTS + BLOCKS[24:]
    with pytest.raises(ImageTooLarge, match=r"more than 1,024 boxes, the limit; save it again"):
        read_header(many, LIMITS)
    items = [NewItem(b"Exif", b"", [])] * MAX_HEADER_PARTS
    with pytest.raises(ImageTooLarge, match=r"more than 1,024 (boxes|items)"):
        read_header(rewritten(BLOCKS, further=items), LIMITS)


def test_items_cannot_share_their_data() -> None:
    """A file whose items together are longer than itself is refused: its decoder would get more than its bytes."""
    data = grid_of(TILE, 2, 2, 128, 128)
    # All tiles get the place of the first one, and a length up to the end.
    table = data.index(b"iloc") + 12
    changed = bytearray(data)
    for entry in range(1, 5):
        place = table + 14 * entry + 6
        changed[place : place + 8] = struct.pack(">II", 200, len(data) - 200)
    with pytest.raises(ImageUndecodable):
        read_header(bytes(changed), LIMITS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (BLOCKS.replace(b"hvc1", b"jpeg"), "HEIF with JPEG pictures is not supported"),
        (BLOCKS.replace(b"hvc1", b"vvc1"), r"HEIF with H\.266 pictures"),
        (BLOCKS.replace(b"hvc1", b"what"), "HEIF with unknown pictures"),
        (rewritten(BLOCKS, [prop(b"what", b"")]), "a picture with the property 'what' is not supported"),
        (rewritten(BLOCKS, [irot(1), clap(20, 20)]), "cropped after its rotation"),
        (
            box(b"ftyp", b"hevc", bytes(4), b"msf1") + box(b"moov", bytes(9)),
            "a sequence of pictures without a still one",
        ),
        (box(b"ftyp", b"qt  ", bytes(4), b"qt  ") + bytes(20), "QuickTime video"),
    ],
)
def test_what_is_not_read_is_named(data: bytes, words: str) -> None:
    """Another coding, an unknown property that matters, an order that is not allowed, a video."""
    with pytest.raises(UnsupportedFormat, match=words):
        decode(data, LIMITS)


def test_unknown_properties_that_do_not_matter_are_left_out() -> None:
    """A property that is not essential changes nothing."""
    data = rewritten(BLOCKS, [prop(b"what", b"ever", essential=False)])
    np.testing.assert_array_equal(decode(data, LIMITS).pixels, BLOCKS_PIXELS)


@pytest.mark.parametrize("brand", [b"mif1", b"msf1", b"heix", b"avif"])
def test_the_primary_picture_has_the_format_and_not_the_brand(brand: bytes) -> None:
    """Brands are shared by codings, and written carelessly."""
    for data, image_format in ((BLOCKS, ImageFormat.HEIC), (AVIF, ImageFormat.AVIF)):
        changed = data[:8] + brand + data[12:]
        assert read_header(changed, LIMITS).format is image_format
        np.testing.assert_array_equal(decode(changed, LIMITS).pixels, decode(data, LIMITS).pixels)


@pytest.mark.parametrize(
    "data",
    [
        *(encoded(PHOTO, "AVIF", subsampling=one) for one in ("4:2:0", "4:2:2", "4:4:4", "4:0:0")),
        encoded(PHOTO, "AVIF", range="limited"),
        encoded(PHOTO.convert("L"), "AVIF"),
        cv2.imencode(".avif", np.asarray(PHOTO).astype(np.uint16) << 2, [cv2.IMWRITE_AVIF_DEPTH, 10])[1].tobytes(),
    ],
    ids=["4:2:0", "4:2:2", "4:4:4", "grey", "limited range", "grey of Pillow", "10 bits"],
)
def test_an_avif_is_equal_to_both(data: bytes) -> None:
    """Pillow and OpenCV, so that all models get their authors' pixels."""
    pixels = decode(data, LIMITS).pixels
    with PIL.Image.open(BytesIO(data)) as file:
        np.testing.assert_array_equal(pixels, np.asarray(file.convert("RGB")))
    by_opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert by_opencv is not None
    np.testing.assert_array_equal(pixels, by_opencv[:, :, ::-1])


def test_without_its_extra_a_heic_is_named() -> None:
    """The error has the format, the command that installs its decoder, and the formats that are read."""
    script = """
import sys
sys.modules["pi_heif"] = None
from model.decode import DecodeLimits, decode
from model.errors import UnsupportedFormat
try:
    decode(sys.stdin.buffer.read(), DecodeLimits(1_000_000, 1_000_000))
except UnsupportedFormat as error:
    print(error)
"""
    child = subprocess.run([sys.executable, "-c", script], input=BLOCKS, capture_output=True, check=True, cwd=ROOT)
    assert child.stdout.decode().strip() == (
        "this is a HEIC picture, whose decoder is not installed: pip install 'convmlp-serving[heif]'; "
        "or send one of JPEG, PNG, WebP, BMP, GIF, AVIF, TIFF"
    )


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4", "4:0:0"])
@pytest.mark.parametrize("size", [(61, 47), (300, 1)])
def test_an_av1_sequence_header_is_read(subsampling: str, size: tuple[int, int]) -> None:
    """Its size and samples, as Pillow's encoder wrote them."""
    data = encoded(PHOTO.resize(size), "AVIF", subsampling=subsampling)
    _, item = still_of(data)
    samples = {"4:2:0": 1.5, "4:2:2": 2.0, "4:4:4": 3.0, "4:0:0": 1.0}[subsampling]
    assert av1.read_coding(bytes(item.data(data))) == Coding(*size, samples, 1)


@pytest.mark.parametrize(
    ("name", "coding"),
    [
        ("blocks", Coding(64, 96, 3.0, 1)),
        ("photo", Coding(64, 64, 1.5, 1)),
        ("grey", Coding(64, 64, 1.0, 1)),
        ("ten_bits", Coding(64, 64, 1.5, 2)),
    ],
)
def test_an_hevc_parameter_set_is_read(name: str, coding: Coding) -> None:
    """Its size, of whole blocks, and its samples. The encoder made small pictures of at least 64 pixels, and a crop."""
    _, item = still_of(picture(name))
    configuration = item.first(b"hvcC")
    assert configuration is not None
    assert hevc.read_configuration(configuration).codings == (coding,)


def test_a_phone_s_largest_heic_needs_a_higher_limit() -> None:
    """One of 8064 x 6048 pixels fits into the memory of the default limits, but not into their work; the documented
    setting admits it, with as many bytes as phones write."""
    data = grid_of(picture("large_tile"), 12, 16, 8064, 6048)
    with pytest.raises(ImageTooLarge, match="decoding this HEIC takes the work of"):
        read_header(data, DecodeLimits(20 << 20, 64_000_000))
    raised = DecodeLimits(20 << 20, 100_000_000)
    header = read_header(data, raised)
    assert header.decode_bytes < 6.7 * 8064 * 6048
    assert header.worst_cost + heif.HEVC_BYTE_COST * 9_000_000 < raised.max_decode_cost
