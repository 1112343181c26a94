"""HEIC and AVIF: the primary picture, in one piece or as a grid of tiles, with its alpha plane.

The decoder gets a new file of these items alone. Orientation and crop are left out of it and applied here, the same way
for both formats: libheif would apply them, libavif does not. EXIF orientation does not count (23008-12, 6.5.10).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Any

import numpy as np
import PIL.AvifImagePlugin
import PIL.Image

from model.containers import av1, hevc, isobmff
from model.containers.bitstream import Coding
from model.containers.header import ACCEPTED, HEIC_EXTRA, Header, ImageFormat, header_of
from model.containers.isobmff import Item, NewItem, Property, Reference, Still
from model.errors import ImageUndecodable, UnsupportedFormat
from model.pixels import PIXEL_BYTES, boxes, composite_on_white
from model.types import UInt8Array

try:
    import pi_heif
except ImportError:
    pi_heif = None

# The executor counts on one thread for a picture. Of libheif, 0 is none beside the one that libde265 has for a tile.
PIL.AvifImagePlugin.DEFAULT_MAX_THREADS = 1
if pi_heif is not None:
    pi_heif.options.DECODE_THREADS = 0
    pi_heif.options.THUMBNAILS = pi_heif.options.DEPTH_IMAGES = pi_heif.options.AUX_IMAGES = False

FORMATS = {b"hvc1": ImageFormat.HEIC, b"av01": ImageFormat.AVIF}
BRANDS = {ImageFormat.HEIC: b"heic", ImageFormat.AVIF: b"avif"}
AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"})
"""The last three are of any coding: only the primary picture shows which."""
MAX_BRANDS = 64
OTHER_CODINGS = {
    b"avc1": "H.264",
    b"grid": "grid",
    b"iden": "derived",
    b"iovl": "overlay",
    b"j2k1": "JPEG 2000",
    b"jpeg": "JPEG",
    b"mski": "mask",
    b"tmap": "tone-mapped",
    b"unci": "uncompressed",
    b"vvc1": "H.266",
}
"""Kinds of items that are named and not decoded."""
NEEDED_PROPERTIES = frozenset({b"hvcC", b"av1C", b"ispe", b"pixi", b"auxC"})
TRANSFORMS = frozenset({b"clap", b"irot", b"imir"})
UNNEEDED_PROPERTIES = frozenset({b"colr", b"pasp"})
"""They may be essential, and are left out."""
ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
MAX_UNITS = 4096
"""Parts of all coded pictures of a file. A tile has some four."""
CODED_MARGIN = 64
"""A coded picture may be larger than the shown one by less than its largest block."""
HEAD_BYTES = 1024
"""Of an item, from which its beginning is read."""

HEVC_COST, HEVC_SLICE_COST, HEVC_BYTE_COST, HEVC_TILE_COST = {1: 11.5, 2: 21}, 4, 22, 30_000
"""Of a coded pixel, by the bytes of its samples; of one in each further slice, which could cover the whole picture
again; of an encoded byte; of a tile, which gets a decoder of its own."""
HEVC_BYTES = {1: 3.1, 2: 5.3}
"""Of a sample at the peak, by the bytes that it has: libheif converts depth, chroma and colour one after the other."""
TURNED_BYTES = 6.1
"""Of a pixel: the picture, and its turned copy."""
AV1_COST, AV1_BYTE_COST, AV1_TILE_COST = 6, 10, 30_000
AVIF_BYTES = 8
"""Of a pixel beside its planes: libavif's RGB and a copy of it, or that copy and Pillow's four."""
ENCODED_COPIES = 2

ORIENTATIONS = {
    (0, 0): 1, (1, 0): 2, (0, 2): 3, (1, 2): 4, (1, 1): 5, (0, 3): 6, (1, 3): 7, (0, 1): 8,
}  # fmt: skip
"""EXIF's number of a picture that is mirrored left to right (1) or not, then turned so many quarters to the left."""


@dataclass(frozen=True, slots=True)
class _Plane:
    """A picture's colour, or its alpha: its item, and the items of its tiles, or itself. Sides in pixels."""

    number: int
    tiles: tuple[int, ...]
    size: tuple[int, int]
    tile_size: tuple[int, int]
    coding: Coding

    @property
    def coded_pixels(self) -> int:
        return len(self.tiles) * self.tile_pixels

    @property
    def tile_pixels(self) -> int:
        return self.coding.width * self.coding.height


@dataclass(frozen=True, slots=True)
class _Layout:
    """`crop` is (left, top, right, bottom) in pixels of the coded picture."""

    still: Still
    planes: tuple[_Plane, ...]
    crop: tuple[int, int, int, int]
    orientation: int
    premultiplied: bool


def declared_format(data: bytes) -> ImageFormat | None:
    """The format by the brands of a file that begins with the box `ftyp`; None: a video, or another format."""
    end = min(int.from_bytes(data[:4], "big"), 8 + 4 * MAX_BRANDS)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    if brands & AVIF_BRANDS:
        return ImageFormat.AVIF
    return ImageFormat.HEIC if brands & HEIC_BRANDS else None


def read_header(data: bytes) -> Header:
    """The header of a HEIC or an AVIF, whichever its primary picture is; its size is that behind the crop.

    Raises:
        struct.error, LookupError, ValueError: damaged.
        UnsupportedFormat: another coding, or HEIC without its decoder.
        ImageTooLarge: too many parts.
    """
    still = isobmff.read_still(data)
    numbers = [still.primary, *_alpha_numbers(still)][:2]
    image_format = _image_format(still)
    planes = tuple(_plane(data, still, number, image_format) for number in numbers)
    colour = planes[0]
    if image_format is ImageFormat.HEIC and colour.coding.samples == 1 and colour.coding.sample_bytes > 1:
        raise UnsupportedFormat(f"grey HEIC of more than 8 bits is not supported; send one of {ACCEPTED}")
    if planes[-1].size != colour.size:
        raise ValueError("the alpha plane has another size")
    encoded_bytes = sum(still.items[tile].data_bytes for plane in planes for tile in plane.tiles)
    if encoded_bytes > len(data):
        raise ValueError("items share data")
    crop, orientation = _transforms(still.items[still.primary], colour.size)
    has_alpha = len(planes) > 1
    premultiplied = any(one.kind == b"prem" and one.source == still.primary for one in still.references)
    layout = _Layout(still, planes, crop, orientation, premultiplied and has_alpha)
    cropped = crop != (0, 0, *colour.size)
    width, height = colour.size
    pixels = width * height
    # Of all planes; and once for each plane, in the largest depth.
    coded_pixels = sum(plane.coded_pixels for plane in planes)
    samples = sum(plane.coding.samples * plane.coded_pixels for plane in planes)
    tiles = sum(len(plane.tiles) for plane in planes)
    sample_bytes = max(plane.coding.sample_bytes for plane in planes)
    if image_format is ImageFormat.HEIC:
        cost = HEVC_COST[sample_bytes] * coded_pixels + HEVC_BYTE_COST * encoded_bytes
        cost += HEVC_SLICE_COST * _further_slices(data, still, planes) + HEVC_TILE_COST * tiles
        decoder_bytes = max(HEVC_BYTES[sample_bytes] * samples, (TURNED_BYTES + has_alpha) * pixels)
    else:
        cost = AV1_COST * coded_pixels + AV1_BYTE_COST * encoded_bytes + AV1_TILE_COST * tiles
        decoder_bytes = sample_bytes * samples + (AVIF_BYTES + has_alpha) * pixels
    decoder_bytes += PIXEL_BYTES * pixels * cropped + ENCODED_COPIES * encoded_bytes
    left, top, right, bottom = crop
    return header_of(
        image_format,
        right - left,
        bottom - top,
        cost,
        row_bytes=decoder_bytes,
        pixel_bytes=0,
        layout=layout,
    )


def load(data: bytes, header: Header) -> tuple[PIL.Image.Image | UInt8Array, int]:
    """The picture as it is stored, cropped, and its orientation as EXIF numbers it. Of HEIC uint8 (H, W, 3 or 4): RGB
    on white, and a fourth channel without meaning.

    Raises:
        ImageTooLarge: too many slices.
        Exception: what decoders raise for damaged files.
    """
    layout = header.layout
    assert isinstance(layout, _Layout)
    file = _needed_file(data, layout, header.format)
    size = layout.planes[0].size
    cropped = layout.crop != (0, 0, *size)
    if header.format is ImageFormat.AVIF:
        picture = PIL.AvifImagePlugin.AvifImageFile(BytesIO(file))
        if picture.size != size:
            raise ValueError("the picture has another size")
        picture.load()
        del picture._decoder  # it holds the planes
        return picture.crop(layout.crop) if cropped else picture, layout.orientation
    pixels = _decode_heic(file, size)
    if cropped:
        left, top, right, bottom = layout.crop
        pixels = np.ascontiguousarray(pixels[top:bottom, left:right])
    return pixels, layout.orientation


def _image_format(still: Still) -> ImageFormat:
    """The format of the primary picture. Raises UnsupportedFormat, LookupError."""
    kind = still.items[still.primary].kind
    if kind == b"grid":
        kind = still.items[_tiles(still, still.primary)[0]].kind
    if kind not in FORMATS:
        coding = OTHER_CODINGS.get(kind, "unknown")
        raise UnsupportedFormat(f"HEIF with {coding} pictures is not supported; send one of {ACCEPTED}")
    if FORMATS[kind] is ImageFormat.HEIC and pi_heif is None:
        raise UnsupportedFormat(
            f"this is a HEIC picture, whose decoder is not installed: pip install 'convmlp-serving[{HEIC_EXTRA}]'; or "
            f"send one of {ACCEPTED}"
        )
    return FORMATS[kind]


def _tiles(still: Still, number: int) -> tuple[int, ...]:
    return next((one.targets for one in still.references if one.kind == b"dimg" and one.source == number), ())


def _alpha_numbers(still: Still) -> list[int]:
    return [
        one.source
        for one in still.references
        if one.kind == b"auxl"
        and still.primary in one.targets
        and (still.items[one.source].first(b"auxC") or b"")[4:].startswith(ALPHA)
    ]


def _plane(data: bytes, still: Still, number: int, image_format: ImageFormat) -> _Plane:
    item = still.items[number]
    size = tile_size = _sides(item)
    tiles: tuple[int, ...] = (number,)
    if item.kind == b"grid":
        tiles = _tiles(still, number)
        grid = item.head(data, HEAD_BYTES)
        rows, columns = grid[2] + 1, grid[3] + 1
        tile_size = _sides(still.items[tiles[0]])
        if (
            len(tiles) != rows * columns
            or struct.unpack_from(">II" if grid[1] & 1 else ">HH", grid, 4) != size
            or not all(
                (count - 1) * side < whole <= count * side
                for count, side, whole in zip((columns, rows), tile_size, size, strict=True)
            )
        ):
            raise ValueError("the grid's tiles do not fit")
    first = still.items[tiles[0]]
    if image_format is ImageFormat.HEIC:
        coding = _hevc_configuration(first, {}).codings[0]
    else:
        coding = av1.read_coding(first.head(data, HEAD_BYTES))
    if not all(
        side <= coded < side + CODED_MARGIN
        for side, coded in zip(tile_size, (coding.width, coding.height), strict=True)
    ):
        raise ImageUndecodable(f"the {image_format} declares several sizes; save it again")
    return _Plane(number, tiles, size, tile_size, coding)


def _further_slices(data: bytes, still: Still, planes: Sequence[_Plane]) -> int:
    """The pixels of each tile, times its slices beside the first. Raises IndexError, ValueError, ImageTooLarge."""
    pixels, left = 0, MAX_UNITS
    known: dict[bytes, hevc.Configuration] = {}
    for plane in planes:
        for number in plane.tiles:
            item = still.items[number]
            slices, units = hevc.picture_slices(item.data(data), _hevc_configuration(item, known).length_bytes, left)
            pixels += plane.tile_pixels * (len(slices) - 1)
            left -= units
    return pixels


def _sides(item: Item) -> tuple[int, int]:
    extents = item.first(b"ispe")
    if extents is None:
        raise ValueError("an item has no size")
    width, height = struct.unpack_from(">II", extents, 4)
    return width, height


def _hevc_configuration(item: Item, known: dict[bytes, hevc.Configuration]) -> hevc.Configuration:
    """`known` are those that were read, by content: a picture's tiles share one."""
    content = item.first(b"hvcC")
    if content is None:
        raise ValueError("an item has no configuration")
    if content not in known:
        known[content] = hevc.read_configuration(content)
    return known[content]


def _transforms(item: Item, size: tuple[int, int]) -> tuple[tuple[int, int, int, int], int]:
    """The crop, and the orientation behind it, as EXIF numbers it. Raises UnsupportedFormat, ValueError."""
    crop = (0, 0, *size)
    mirrored = turns = 0
    for one in item.properties:
        if one.kind == b"clap":
            if mirrored or turns or crop != (0, 0, *size):
                raise UnsupportedFormat("a picture that is cropped after its rotation is not supported; save it again")
            crop = _crop(one.content, size)
        elif one.kind == b"irot":
            turns = (turns + one.content[0]) % 4
        elif one.kind == b"imir":
            # Mirrored left to right (1), or top to bottom, which is that and half a rotation.
            mirrored, turns = 1 - mirrored, (-turns + (0 if one.content[0] & 1 else 2)) % 4
    return crop, ORIENTATIONS[mirrored, turns]


def _crop(content: bytes, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """From the box `clap`: (left, top, right, bottom) in whole pixels. Raises struct.error, ValueError."""
    sides: list[tuple[int, int]] = []
    for whole, side_at, shift_at in ((size[0], 0, 16), (size[1], 8, 24)):
        numerator, denominator = struct.unpack_from(">II", content, side_at)
        shift, shift_denominator = struct.unpack_from(">iI", content, shift_at)
        if not denominator or not shift_denominator:
            raise ValueError("a crop has no size")
        side = Fraction(numerator, denominator)
        start = Fraction(shift, shift_denominator) + (whole - side) / 2
        begin, end = round(start), round(start + side)
        if not 0 <= begin < end <= whole:
            raise ValueError("the crop lies outside of the picture")
        sides.append((begin, end))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def _needed_file(data: bytes, layout: _Layout, image_format: ImageFormat) -> bytes:
    """A file of the picture's items, checked.

    Raises:
        IndexError, ValueError: damaged.
        UnsupportedFormat: an item has an essential property that is not known.
    """
    items: list[NewItem] = []
    references: list[Reference] = []
    left = MAX_UNITS
    known: dict[bytes, hevc.Configuration] = {}
    for plane in layout.planes:
        number = len(items) + 1
        if number > 1:
            references.append(Reference(b"auxl", number, (1,)))
            if layout.premultiplied:
                references.append(Reference(b"prem", 1, (number,)))
        item = layout.still.items[plane.number]
        if item.kind == b"grid":
            items.append(NewItem(b"grid", item.data(data), _properties(item)))
            references.append(Reference(b"dimg", number, tuple(range(number + 1, number + 1 + len(plane.tiles)))))
        for tile_number in plane.tiles:
            tile = layout.still.items[tile_number]
            if FORMATS.get(tile.kind) is not image_format or _sides(tile) != plane.tile_size:
                raise ValueError("tiles differ")
            if tile is not item and any(one.kind in TRANSFORMS for one in tile.properties):
                raise UnsupportedFormat("a grid of turned tiles is not supported; save the picture again")
            encoded = tile.data(data)
            if image_format is ImageFormat.AVIF:
                encoded = bytes(encoded)
                av1.check_configuration(tile.first(b"av1C") or b"", plane.coding)
                left -= av1.check_picture(encoded, plane.coding, left)
            else:
                encoded = _slices_alone(encoded, _hevc_configuration(tile, known), plane.coding)
            items.append(NewItem(tile.kind, encoded, _properties(tile)))
    return isobmff.write_still(BRANDS[image_format], items, references)


def _slices_alone(encoded: bytes | memoryview, configuration: hevc.Configuration, coding: Coding) -> bytes:
    """Without further parameter sets, which could declare another size."""
    if any(one != coding for one in configuration.codings):
        raise ValueError("tiles differ")
    slices, _ = hevc.picture_slices(encoded, configuration.length_bytes, MAX_UNITS)
    return b"".join(encoded[start:end] for start, end in slices)


def _properties(item: Item) -> Sequence[Property]:
    for one in item.properties:
        if one.essential and one.kind not in NEEDED_PROPERTIES | TRANSFORMS | UNNEEDED_PROPERTIES:
            kind = one.kind.decode("latin-1")
            raise UnsupportedFormat(f"a picture with the property {kind!r} is not supported; send one of {ACCEPTED}")
    # Of the colours only the matrix matters, by which RGB is computed. The bits of samples follow from the picture:
    # libheif would take another number (`pixi`) for them.
    return [
        one
        for one in item.properties
        if (one.kind in NEEDED_PROPERTIES and not (one.kind == b"pixi" and item.first(b"hvcC") is not None))
        or (one.kind == b"colr" and one.content.startswith(b"nclx"))
    ]


class _Decoded:
    """A decoded picture's memory, for NumPy. The array keeps it: pi_heif's own arrays do not."""

    def __init__(self, image: Any, channels: int) -> None:  # noqa: ANN401  (pi_heif has no types)
        self._image = image
        address = np.frombuffer(image.data, np.uint8).ctypes.data
        width, height = image.size
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (height, width, channels),
            "strides": (image.stride, channels, 1),
            "data": (address, False),
        }


def _decode_heic(file: bytes, size: tuple[int, int]) -> UInt8Array:
    """RGB on white, and perhaps a fourth channel without meaning. Raises what pi_heif does."""
    image = pi_heif.open_heif(file)[0]
    if image.size != size:
        raise ValueError("the picture has another size")
    image.load()
    pixels: UInt8Array = np.asarray(_Decoded(image, {"L": 1, "RGB": 3, "RGBA": 4, "RGBa": 4}[image.mode]))
    if image.mode == "L":
        pixels = np.repeat(pixels, 3, axis=2)
    elif image.mode == "RGBA":
        pixels = composite_on_white(pixels)
    elif image.mode == "RGBa":
        for left, top, right, bottom in boxes(*size):
            # Colours are multiplied by alpha already, so white is added.
            colours, alpha = np.split(pixels[top:bottom, left:right], (3,), axis=2)
            colours += np.minimum(255 - alpha, 255 - colours)
    return pixels
