"""Data sets of classifiers: a folder for each class, and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.evaluation.dataset import (
    ClassTruth,
    DataFormat,
    DataInvalid,
    Dataset,
    Sample,
    is_picture,
    require_pictures,
)

PATH_COLUMNS = ("path", "file", "filename", "file_name", "image", "image_path", "filepath", "image_id")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "classes", "tags")
SEPARATOR = "|"
"""Between several labels in one cell."""


def read_class_folders(path: Path) -> Dataset:
    """Each folder below `path` is a class, and its pictures, at any depth, are the class's. Other files are ignored.

    Raises:
        DataInvalid: there are no such folders, or they have no pictures.
    """
    folders = sorted(folder for folder in _entries(path) if folder.is_dir() and not folder.name.startswith("."))
    samples = [
        Sample(file.relative_to(path).as_posix(), file, ClassTruth((folder.name,)))
        for folder in folders
        for file in sorted(folder.rglob("*"))
        if is_picture(file)
    ]
    labels = dict.fromkeys(label for sample in samples for label in _labels(sample))
    return Dataset(path, DataFormat.FOLDERS, tuple(labels), require_pictures(path, samples))


def read_csv(path: Path, images: Path | None) -> Dataset:
    """Rows of a picture's path and its label, with a header or without.

    A header names the columns: one of PATH_COLUMNS and one of LABEL_COLUMNS. Without, the first two columns count. The
    paths are below `images`, by default the file's own folder. A picture with several labels has several rows, or
    the labels in one cell, with SEPARATOR between them.

    Raises:
        DataInvalid: the file cannot be read, a row is not complete, or there are no pictures.
    """
    root = path.parent if images is None else images
    found: dict[str, list[str]] = {}
    for name, cell in _rows(path):
        labels = found.setdefault(name, [])
        labels.extend(label for part in cell.split(SEPARATOR) if (label := part.strip()) and label not in labels)
    samples = [Sample(name, root / name, ClassTruth(tuple(labels))) for name, labels in found.items()]
    names = dict.fromkeys(label for labels in found.values() for label in labels)
    return Dataset(path, DataFormat.CSV, tuple(names), require_pictures(path, samples))


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max("\t;,", key=first.count)
            rows = csv.reader(file, delimiter=delimiter)
            path_column, label_column, has_header = _columns(path, first, delimiter)
            if has_header:
                next(rows)
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) <= max(path_column, label_column) or not row[path_column].strip():
                    raise DataInvalid(
                        f"{path}: line {rows.line_num} has {len(row)} columns; expected a path and a label"
                    )
                yield row[path_column].strip(), row[label_column].strip()
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataInvalid(f"{path} is not CSV in UTF-8: {error}") from error


def _columns(path: Path, first: str, delimiter: str) -> tuple[int, int, bool]:
    """The columns of path and label, and whether the first line is a header."""
    names = [name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
    if len(names) < 2:
        raise DataInvalid(f"{path} has one column; expected a path and a label, separated by commas")
    path_column = _first(names, PATH_COLUMNS)
    label_column = _first(names, LABEL_COLUMNS)
    if path_column is None and label_column is None:
        return 0, 1, False
    if path_column is None or label_column is None:
        missing, known = ("path", PATH_COLUMNS) if path_column is None else ("label", LABEL_COLUMNS)
        raise DataInvalid(f"{path}: no column for the {missing}; its header is one of {', '.join(known)}")
    return path_column, label_column, True


def _first(names: Sequence[str], known: Sequence[str]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read: {error.strerror}") from error


def _labels(sample: Sample) -> tuple[str, ...]:
    return sample.truth.labels if isinstance(sample.truth, ClassTruth) else ()
