"""Labelled pictures for training: the Oxford-IIIT Pet dataset's index and folds; and any data, in memory."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from model.decode import decode
from model.errors import ConvMLPError
from model.metrics import TrueBox
from model.predictor import LIMITS
from model.types import Box, Reader, Size, UInt8Array

SPECIES = ("cat", "dog")
HELD_OUT_FOLD = 0
COLUMNS = (
    *("file", "width", "height", "fold", "species", "breed", "breed_id", "mask"),
    *("head_xmin", "head_ymin", "head_xmax", "head_ymax"),
)
"""Those of `index.csv` that are read."""
IGNORE = 255
"""Value of unknown pixels in a label map."""


class DataUnreadable(ConvMLPError):
    """A file of the data cannot be read."""

    code = "data-unreadable"


@dataclass(frozen=True, slots=True)
class Record:
    """One photograph, of `size` when upright.

    `label`: its class, from 0. `mask`: reads its label map, uint8 (H, W): class indices, IGNORE where unknown.
    `species`, a position in SPECIES, and `head`, in its pixels, are of the pets data alone. `boxes`: of other data, the
    objects, in its pixels; None: they are not known.
    """

    path: Path
    size: Size
    fold: int
    species: int
    label: int
    head: Box | None
    mask: Callable[[], UInt8Array] | None
    boxes: tuple[TrueBox, ...] | None = None

    @property
    def objects(self) -> tuple[TrueBox, ...] | None:
        """Those that a detector should find; None: they are not known."""
        return (TrueBox(self.species, self.head),) if self.head is not None else self.boxes


@dataclass(frozen=True, slots=True)
class PetIndex:
    """All records in the file's order, and the breeds' readable names by index."""

    records: tuple[Record, ...]
    breeds: tuple[str, ...]

    def training(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.fold != HELD_OUT_FOLD)

    def held_out(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.fold == HELD_OUT_FOLD)


def read_index(data_dir: Path) -> PetIndex:
    """Read `index.csv`.

    Raises:
        OSError: it cannot be read.
        ValueError: columns are missing, a value is not valid, breed numbers have gaps, or a fold has no record.
    """
    path = data_dir / "index.csv"
    names: dict[int, str] = {}
    records = []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise ValueError(f"{path} lacks the columns {', '.join(missing)}; the data set's README describes them")
        for row in rows:
            try:
                breed = int(row["breed_id"]) - 1
                records.append(_record(data_dir, row, breed))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
            names[breed] = row["breed"].replace("_", " ")
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{path}: breed_id must count from 1 without gaps")
    held_out = sum(record.fold == HELD_OUT_FOLD for record in records)
    if held_out in (0, len(records)):
        raise ValueError(
            f"{path}: {held_out} of {len(records)} photographs are in fold {HELD_OUT_FOLD}, which is held out; "
            "expected some there and some in other folds"
        )
    return PetIndex(tuple(records), tuple(names[index] for index in range(len(names))))


def _record(data_dir: Path, row: dict[str, str], breed: int) -> Record:
    if row["species"] not in SPECIES:
        raise ValueError(f"the species is {row['species']!r}; expected one of {', '.join(SPECIES)}")
    corners = [row[f"head_{name}"] for name in ("xmin", "ymin", "xmax", "ymax")]
    return Record(
        path=data_dir / row["file"],
        size=Size(int(row["height"]), int(row["width"])),
        fold=int(row["fold"]),
        species=SPECIES.index(row["species"]),
        label=breed,
        head=Box(*map(float, corners)) if all(corners) else None,
        mask=partial(_pet_mask, data_dir / row["mask"], SPECIES.index(row["species"])) if row["mask"] else None,
    )


@dataclass(frozen=True, slots=True)
class Photographs:
    """Records and their pictures, index by index: uint8 (H, W, 3), RGB."""

    records: Sequence[Record]
    pictures: Sequence[UInt8Array]


def load_photographs(records: Sequence[Record], shorter_side: int | None = None) -> Photographs:
    """Decode all photographs, and reduce them to a shorter side of at most `shorter_side` px: at 256 px some 260 kB of
    memory each. The records of the result have sizes and boxes in these pixels.

    Raises:
        OSError: a file cannot be read.
        ConvMLPError: as `decode`; the file's name comes first.
    """
    found, pictures = [], []
    for record in records:
        pixels = read_picture(record.path)
        shorter = min(pixels.shape[:2])
        if shorter_side is not None and shorter > shorter_side:
            height, width = (max(round(side * shorter_side / shorter), 1) for side in pixels.shape[:2])
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
            record = _resized(record, Size(height, width))
        found.append(record)
        pictures.append(pixels)
    return Photographs(found, pictures)


def read_picture(path: Path) -> UInt8Array:
    """A picture's pixels: uint8 (H, W, 3), RGB, upright. Raises OSError, or DataUnreadable, which names the file."""
    try:
        return decode(path.read_bytes(), LIMITS, Reader.OPENCV).pixels
    except ConvMLPError as error:
        raise DataUnreadable(f"{path}: {error.detail}") from error


def _resized(record: Record, size: Size) -> Record:
    x, y = size.width / record.size.width, size.height / record.size.height

    def resized(box: Box) -> Box:
        return Box(box.xmin * x, box.ymin * y, box.xmax * x, box.ymax * y)

    head = None if record.head is None else resized(record.head)
    boxes = None if record.boxes is None else tuple(replace(one, box=resized(one.box)) for one in record.boxes)
    return replace(record, size=size, head=head, boxes=boxes)


def load_label_maps(records: Sequence[Record]) -> dict[int, UInt8Array]:
    """The label maps of the records that have a mask, by index: uint8 (H, W) of their sizes.

    Raises OSError, or what a mask raises.
    """
    return {
        index: _of_size(record.mask(), record.size) for index, record in enumerate(records) if record.mask is not None
    }


def _of_size(values: UInt8Array, size: Size) -> UInt8Array:
    if values.shape == (size.height, size.width):
        return values
    return cv2.resize(values, (size.width, size.height), interpolation=cv2.INTER_NEAREST).astype(np.uint8)


def _pet_mask(path: Path, species: int) -> UInt8Array:
    return label_map(_read(path, cv2.IMREAD_GRAYSCALE), species)


def label_map(mask: UInt8Array, species: int) -> UInt8Array:
    """A mask (1 animal, 2 background, 3 unknown) → class indices (H, W): background 0, cat 1, dog 2, else IGNORE."""
    lookup = np.full(256, IGNORE, np.uint8)
    lookup[1], lookup[2] = species + 1, 0
    return lookup[mask]


def _read(path: Path, mode: int) -> UInt8Array:
    pixels = cv2.imread(str(path), mode)
    if pixels is None:
        raise OSError(f"{path}: missing or not a picture")
    return pixels.astype(np.uint8)
