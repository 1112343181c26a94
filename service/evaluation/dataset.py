"""A labelled data set: its pictures with their truth, and its hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from model.bundle import file_sha256
from model.errors import ConvMLPError
from model.types import Box, Task

MAX_LISTED = 5
"""Names listed in an error."""

PICTURE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)


class DataInvalid(ConvMLPError):
    """The data set cannot be read, or does not fit the model."""

    code = "data-invalid"


class DataFormat(StrEnum):
    """`FOLDERS`: a folder for each class. `CSV`: rows of path and label. `COCO`: instances. `PANOPTIC`: COCO's
    panoptic segments. `MASKS`: a PNG of class indices for each picture."""

    FOLDERS = "folders"
    CSV = "csv"
    COCO = "coco"
    PANOPTIC = "panoptic"
    MASKS = "masks"


TASKS: Mapping[DataFormat, frozenset[Task]] = {
    DataFormat.FOLDERS: frozenset({Task.CLASSIFY}),
    DataFormat.CSV: frozenset({Task.CLASSIFY}),
    DataFormat.COCO: frozenset({Task.CLASSIFY, Task.DETECT}),
    DataFormat.PANOPTIC: frozenset({Task.SEGMENT}),
    DataFormat.MASKS: frozenset({Task.SEGMENT}),
}
"""The tasks whose truth each format has."""


@dataclass(frozen=True, slots=True)
class ClassTruth:
    """The data set's names of a picture's classes; several, or none, where the data set is multi-label."""

    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrueObject:
    """An object: its label, its box in pixels of the upright picture, and its mask.

    `mask`: COCO's `segmentation`: polygons, or run lengths; None if the object has none. `area` in pixels. `crowd`: the
    region has any number of objects of the label; detections in it are neither right nor wrong.
    """

    label: str
    box: Box
    area: float
    crowd: bool
    mask: Any


@dataclass(frozen=True, slots=True)
class ObjectsTruth:
    """`size`: width and height of the picture that the objects are in, if the data set has them."""

    objects: tuple[TrueObject, ...]
    size: tuple[int, int] | None = None

    @property
    def has_masks(self) -> bool:
        return any(one.mask is not None for one in self.objects)


@dataclass(frozen=True, slots=True)
class MaskTruth:
    """A PNG with a value for each pixel of the upright picture.

    `labels`: the label of each value; a value that is not in it has no class, and its pixels are left out. None: the
    values are the labels, as decimal numbers.
    `rgb`: values are red + 256 green + 65536 blue, as in COCO's panoptic PNGs.
    """

    path: Path
    labels: Mapping[int, str] | None = None
    rgb: bool = False


Truth = ClassTruth | ObjectsTruth | MaskTruth


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture and its truth. `name` is unique in the data set: the path below the folder of pictures."""

    name: str
    path: Path
    truth: Truth


@dataclass(frozen=True, slots=True)
class Dataset:
    """`labels` are the names that occur in the truth, in the data set's order; `annotations` the files of the truth."""

    path: Path
    format: DataFormat
    labels: tuple[str, ...]
    samples: tuple[Sample, ...]
    annotations: tuple[Path, ...] = ()

    @property
    def multi_label(self) -> bool:
        """Whether a picture has several classes, or none."""
        return any(isinstance(sample.truth, ClassTruth) and len(sample.truth.labels) != 1 for sample in self.samples)

    def sha256(self, advance: Callable[[], None] = lambda: None) -> str:
        """A hash over the names and contents of all pictures and of the files of the truth, in hex.

        It does not depend on where the data set is. A picture that cannot be read counts as missing. `advance` is
        called once for each picture.

        Raises:
            DataInvalid: a file of the truth cannot be read.
        """
        lines = []
        for sample in self.samples:
            lines.append(f"picture {sample.name} {_digest(sample.path) or 'missing'} {_class_names(sample.truth)}")
            if isinstance(sample.truth, MaskTruth):
                lines.append(f"mask {sample.name} {require_digest(sample.truth.path)}")
            advance()
        lines += [f"annotations {path.name} {require_digest(path)}" for path in self.annotations]
        return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def require_digest(path: Path) -> str:
    """A file's SHA-256. Raises DataInvalid."""
    digest = _digest(path)
    if digest is None:
        raise DataInvalid(f"{path} is missing or cannot be read; the data set needs it")
    return digest


def _digest(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None


def _class_names(truth: Truth) -> str:
    return repr(truth.labels) if isinstance(truth, ClassTruth) else ""


def listed(names: Iterable[str]) -> str:
    """The first names, quoted, and how many more there are."""
    found = list(names)
    more = f", … ({len(found)} in all)" if len(found) > MAX_LISTED else ""
    return ", ".join(repr(name) for name in found[:MAX_LISTED]) + more


def is_picture(path: Path) -> bool:
    """Whether a file's name is a picture's: hidden files and other suffixes are not."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def require_pictures(path: Path, samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples, if there is one, and the file of one exists.

    Raises:
        DataInvalid: there are no samples, two have one name, or all files are missing.
    """
    if not samples:
        raise DataInvalid(f"{path} has no pictures")
    counts = Counter(sample.name for sample in samples)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DataInvalid(f"{path} has pictures more than once: {listed(twice)}")
    if not any(sample.path.is_file() for sample in samples):
        raise DataInvalid(
            f"none of the {len(samples)} pictures of {path} exists; the first is expected at {samples[0].path}; "
            "--images FOLDER names their folder"
        )
    return tuple(samples)
