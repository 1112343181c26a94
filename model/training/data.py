"""The Oxford-IIIT Pet dataset: index, folds, and decoded pictures in memory."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from model.types import Box, Size, UInt8Array

SPECIES = ("cat", "dog")
HELD_OUT_FOLD = 0
COLUMNS = (
    *("file", "width", "height", "fold", "species", "breed", "breed_id", "mask"),
    *("head_xmin", "head_ymin", "head_xmax", "head_ymax"),
)
"""Those of `index.csv` that are read."""
IGNORE = 255
"""Value of unknown pixels in a label map."""


@dataclass(frozen=True, slots=True)
class Record:
    """One photograph. `breed` counts from 0; `species` is a position in SPECIES; `head` is in its pixels."""

    path: Path
    size: Size
    fold: int
    species: int
    breed: int
    head: Box | None
    mask: Path | None


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
        breed=breed,
        head=Box(*map(float, corners)) if all(corners) else None,
        mask=data_dir / row["mask"] if row["mask"] else None,
    )


@dataclass(frozen=True, slots=True)
class Photographs:
    """Records and their pictures, index by index: uint8 (H, W, 3), RGB."""

    records: Sequence[Record]
    pictures: Sequence[UInt8Array]


def load_photographs(records: Sequence[Record]) -> Photographs:
    """Decode all photographs, about 260 kB of memory each. Raises OSError."""
    pictures = [
        cv2.cvtColor(_read(record.path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.uint8) for record in records
    ]
    return Photographs(records, pictures)


def load_label_maps(records: Sequence[Record]) -> dict[int, UInt8Array]:
    """The label maps of the records that have a mask, by index: uint8 (H, W), see `label_map`. Raises OSError."""
    return {
        index: label_map(_read(record.mask, cv2.IMREAD_GRAYSCALE), record.species)
        for index, record in enumerate(records)
        if record.mask is not None
    }


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
