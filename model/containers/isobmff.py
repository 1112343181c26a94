"""ISO base media files (ISO/IEC 14496-12) with still pictures (23008-12): HEIC and AVIF.

A file has items: coded pictures, the tiles of a grid, alpha planes, thumbnails, gain maps, metadata. `read_still` finds
the primary picture, `write_still` writes a file of the items that decoding needs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from model.containers.header import MAX_HEADER_PARTS, too_many_parts
from model.errors import UnsupportedFormat

MAX_PROPERTIES = 32
"""Of an item."""
FIELDS = {0: "", 4: "I", 8: "Q"}
"""Fields of the box `iloc`, by their bytes."""


@dataclass(frozen=True, slots=True)
class Property:
    """A box that describes items: its kind, the box itself with its header, and whether a reader must know its kind."""

    kind: bytes
    box: bytes
    essential: bool = True

    @property
    def content(self) -> bytes:
        return self.box[8:]


@dataclass(frozen=True, slots=True)
class Item:
    """A part of a picture: its kind, where its data is in the file as (start, end), and its properties, in order."""

    kind: bytes
    extents: tuple[tuple[int, int], ...]
    properties: tuple[Property, ...]

    def data(self, file: bytes) -> bytes | memoryview:
        """Its data, not copied if it is in one part. Raises IndexError: truncated."""
        parts: list[memoryview] = []
        for start, end in self.extents:
            if end > len(file):
                raise IndexError("an item's data is truncated")
            parts.append(memoryview(file)[start:end])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def data_bytes(self) -> int:
        return sum(end - start for start, end in self.extents)

    def head(self, file: bytes, size: int) -> bytes:
        """The first bytes of the data, of its first part."""
        start, end = self.extents[0]
        return file[start : min(end, start + size)]

    def first(self, kind: bytes) -> bytes | None:
        """The content of the first property of a kind."""
        return next((one.content for one in self.properties if one.kind == kind), None)


@dataclass(frozen=True, slots=True)
class Reference:
    """Of one item to others: `dimg` from a grid to its tiles, `auxl` from an alpha plane to its picture."""

    kind: bytes
    source: int
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Still:
    """The items of a file, by number."""

    primary: int
    items: Mapping[int, Item]
    references: tuple[Reference, ...]


def read_still(data: bytes) -> Still:
    """The items of a file.

    Raises:
        struct.error, LookupError, ValueError: damaged, or no still picture.
        UnsupportedFormat: a sequence, which has frames and no items.
        ImageTooLarge: too many parts.
    """
    reader = _Reader(data)
    found = reader.child(0, len(data), b"meta")
    if found is None:
        if reader.child(0, len(data), b"moov") is not None:
            raise UnsupportedFormat(
                "a sequence of pictures without a still one is not supported; send one of its frames"
            )
        raise ValueError("no items")
    meta = {kind: (content, end) for kind, _, content, end in reader.boxes(found[0] + 4, found[1])}
    (primary,) = struct.unpack_from(">I" if data[meta[b"pitm"][0]] else ">H", data, meta[b"pitm"][0] + 4)
    kinds = reader.kinds(*meta[b"iinf"])
    extents = reader.extents(meta[b"iloc"][0], meta.get(b"idat"))
    items = _Items(kinds, extents, *reader.properties(*meta[b"iprp"]))
    references = tuple(reader.references(*meta[b"iref"])) if b"iref" in meta else ()
    if primary not in items:
        raise ValueError("no primary item")
    return Still(primary, items, references)


class _Items(Mapping[int, Item]):
    """The items, each made when it is needed: a file may have many more."""

    def __init__(
        self,
        kinds: dict[int, bytes],
        extents: dict[int, tuple[tuple[int, int], ...]],
        boxes: list[bytes],
        properties: dict[int, tuple[int, ...]],
    ) -> None:
        self._kinds, self._extents, self._boxes, self._properties = kinds, extents, boxes, properties
        self._made: dict[int, Item] = {}
        self._known: dict[int, Property] = {}

    def __getitem__(self, number: int) -> Item:
        item = self._made.get(number)
        if item is None:
            properties = tuple([self._property(index) for index in self._properties.get(number, ()) if index & 0x7FFF])
            item = self._made[number] = Item(self._kinds[number], self._extents.get(number, ()), properties)
        return item

    def __iter__(self) -> Iterator[int]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def _property(self, index: int) -> Property:
        found = self._known.get(index)
        if found is None:
            property_box = self._boxes[(index & 0x7FFF) - 1]
            found = self._known[index] = Property(property_box[4:8], property_box, index > 0x7FFF)
        return found


class _Reader:
    """Reads boxes. All offsets are in the file. Methods raise what `read_still` does."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def boxes(self, start: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
        """The kind of each box, where it and its content start, and where it ends."""
        for _ in range(MAX_HEADER_PARTS):
            if start + 8 > end:
                return
            length, kind = struct.unpack_from(">I4s", self._data, start)
            content = start + 8
            if length == 1:
                (length,) = struct.unpack_from(">Q", self._data, content)
                content += 8
            box_end = start + length if length else end
            if box_end < content:
                raise ValueError("a box is shorter than its header")
            yield kind, start, content, min(box_end, end)
            start = box_end
        raise too_many_parts("HEIF file", "boxes", MAX_HEADER_PARTS)

    def child(self, start: int, end: int, kind: bytes) -> tuple[int, int] | None:
        """Where the content of the first box of a kind starts and ends; None if there is none."""
        for one, _, content, box_end in self.boxes(start, end):
            if one == kind:
                return content, box_end
        return None

    def kinds(self, start: int, end: int) -> dict[int, bytes]:
        """The kind of each item, from the box `iinf`."""
        kinds: dict[int, bytes] = {}
        for kind, _, content, _ in self.boxes(start + (8 if self._data[start] else 6), end):
            version = self._data[content]
            if kind == b"infe" and version >= 2:
                number, _, item_kind = struct.unpack_from(">HH4s" if version == 2 else ">IH4s", self._data, content + 4)
                kinds[number] = item_kind
        return kinds

    def properties(self, start: int, end: int) -> tuple[list[bytes], dict[int, tuple[int, ...]]]:
        """All properties, and those of each item, from 1 on, from the box `iprp`."""
        place = self.child(start, end, b"ipco")
        if place is None:
            raise ValueError("the properties are missing")
        known = [self._data[box_start:box_end] for _, box_start, _, box_end in self.boxes(*place)]
        found: dict[int, tuple[int, ...]] = {}
        for kind, _, content, _ in self.boxes(start, end):
            if kind != b"ipma":
                continue
            version, wide = self._data[content], self._data[content + 3] & 1
            (entries,) = struct.unpack_from(">I", self._data, content + 4)
            self._check_number(entries, "items")
            offset = content + 8
            for _ in range(entries):
                number, count = struct.unpack_from(">IB" if version else ">HB", self._data, offset)
                self._check_number(count, "properties of an item", MAX_PROPERTIES)
                offset += 5 if version else 3
                indices = struct.unpack_from(f">{count}{'H' if wide else 'B'}", self._data, offset)
                offset += count << wide
                # The highest bit is whether the property is essential.
                found[number] = indices if wide else tuple([index + (index & 0x80) * 0xFF for index in indices])
        return known, found

    def extents(self, start: int, idat: tuple[int, int] | None) -> dict[int, tuple[tuple[int, int], ...]]:
        """Where each item's data is, from the box `iloc`. Items in other files or other items are left out."""
        data = self._data
        version, sizes = data[start], data[start + 4] << 8 | data[start + 5]
        offset_code, length_code, base_code, index_code = (FIELDS[sizes >> shift & 15] for shift in (12, 8, 4, 0))
        wide = version == 2
        (entries,) = struct.unpack_from(">I" if wide else ">H", data, start + 6)
        offset = start + (10 if wide else 8)
        left = self._check_number(entries, "items")
        # Where a field is left out, it is 0.
        head = struct.Struct(f">{'I' if wide else 'H'}{'H' if version else ''}H{base_code}H")
        part = struct.Struct(f">{index_code if version else ''}{offset_code}{length_code}")
        found: dict[int, tuple[tuple[int, int], ...]] = {}
        for _ in range(entries):
            number, *fields, count = head.unpack_from(data, offset)
            offset += head.size
            construction = fields.pop(0) & 15 if version else 0
            elsewhere, base = fields if base_code else (*fields, 0)
            if construction == 1 and idat is not None:
                base += idat[0]
            left = self._check_number(left - count, "parts of items")
            extents: list[tuple[int, int]] = []
            for _ in range(count):
                values = part.unpack_from(data, offset)
                offset += part.size
                length = values[-1] if length_code else 0
                begin = base + (values[-2 if length_code else -1] if offset_code else 0)
                extents.append((begin, begin + length if length else len(data)))
            if construction < 2 and not elsewhere:
                found[number] = tuple(extents)
        return found

    def references(self, start: int, end: int) -> Iterator[Reference]:
        """The references, from the box `iref`."""
        code = "I" if self._data[start] else "H"
        size = struct.calcsize(code)
        for kind, _, content, _ in self.boxes(start + 4, end):
            source, count = struct.unpack_from(f">{code}H", self._data, content)
            self._check_number(count, "references of an item")
            targets = struct.unpack_from(f">{count}{code}", self._data, content + size + 2)
            yield Reference(kind, source, targets)

    def _check_number(self, number: int, parts: str, limit: int = MAX_HEADER_PARTS) -> int:
        if number > limit or number < 0:
            raise too_many_parts("HEIF file", parts, limit)
        return number


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to write. Its number is its place, from 1."""

    kind: bytes
    data: bytes | memoryview
    properties: Sequence[Property]


def write_still(brand: bytes, items: Sequence[NewItem], references: Sequence[Reference]) -> bytes:
    """A file whose primary item is the first one."""
    places: dict[bytes, int] = {}
    associations, locations, infos = [], [], []
    offset = 0
    for number, item in enumerate(items, 1):
        indices = [
            places.setdefault(one.box, len(places) + 1) | (0x8000 if one.essential else 0) for one in item.properties
        ]
        associations.append(struct.pack(f">HB{len(indices)}H", number, len(indices), *indices))
        # One extent each, in the order of the items.
        locations.append((number, offset, len(item.data)))
        infos.append(box(b"infe", struct.pack(">IHH4sx", 2 << 24, number, 0, item.kind)))
        offset += len(item.data)
    boxes = [
        box(b"hdlr", struct.pack(">8x4s12xx", b"pict")),
        box(b"pitm", struct.pack(">IH", 0, 1)),
        box(b"iinf", struct.pack(">IH", 0, len(items)), *infos),
        box(
            b"iprp",
            box(b"ipco", *places),
            box(b"ipma", struct.pack(">II", 1, len(items)), *associations),
        ),
    ]
    if references:
        written = (
            box(one.kind, struct.pack(f">HH{len(one.targets)}H", one.source, len(one.targets), *one.targets))
            for one in references
        )
        boxes.append(box(b"iref", bytes(4), *written))
    head = box(b"ftyp", brand, bytes(4), brand, b"mif1miaf")
    location_bytes = 8 + 8 + 14 * len(items)
    data_start = len(head) + 12 + sum(map(len, boxes)) + location_bytes + 8
    table = [struct.pack(">HHHII", number, 0, 1, data_start + start, length) for number, start, length in locations]
    boxes.append(box(b"iloc", struct.pack(">IHH", 0, 0x4400, len(items)), *table))
    return b"".join((head, box(b"meta", bytes(4), *boxes), box(b"mdat", *(item.data for item in items))))


def box(kind: bytes, *content: bytes | memoryview) -> bytes:
    return b"".join((struct.pack(">I4s", 8 + sum(map(len, content)), kind), *content))
