"""The pictures of a job: what IN names, cut into units that are scored independently of each other.

IN is a picture, a folder, a glob, a text file with a line for each, a tar shard (WebDataset), a Parquet file, or any of
these in an object store. A folder, a glob and a list may also have shards. Each picture has an id, which is unique in
its source: its path relative to the source; in a shard the shard's path and the member's name, or the row's number.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from model.errors import ConvMLPError, ImageUndecodable
from service.batch.compact import IdSet, Names
from service.batch.samples import FilesUnit, Unit
from service.batch.shards import ParquetColumns, parquet_units, require_columns, tar_units
from service.batch.storage import PARQUET, SCHEMES, TARS, Place
from service.evaluation.dataset import is_picture

LISTS = (".txt", ".lst", ".list")
MAX_LINE = 4096
"""Characters of a line of a list."""
UNIT_PICTURES = 32
UNITS_PER_THREAD = 4
"""Fewer pictures make smaller units, so that all threads have work."""


class SourceInvalid(ConvMLPError):
    """IN cannot be read, or has no pictures."""

    code = "source-invalid"


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a source, in a fixed order: pictures, and shards with many pictures each. Names are relative to
    `place`, or absolute."""

    place: Place
    pictures: Collection[str] | Names
    shards: Collection[str] | Names = ()
    columns: ParquetColumns = field(default_factory=ParquetColumns)

    @property
    def sha256(self) -> str:
        """Of the names of all files."""
        digest = hashlib.sha256()
        for name in (*self.pictures, "", *self.shards):
            digest.update(os.fsencode(name) + b"\0")
        return digest.hexdigest()

    def units(self, done: IdSet, threads: int) -> Iterator[Unit]:
        """The pictures that are not `done`, by their ids, for so many threads. Shards that must be read to know their
        pictures leave those out later.

        Raises:
            SourceInvalid: a shard cannot be read, as a whole.
            StorageFailed, PackageMissing: as `Place.open`.
        """
        left = len(self.pictures) - len(done)
        size = max(1, min(UNIT_PICTURES, left // (threads * UNITS_PER_THREAD)))
        pending = (name for name in self.pictures if id_of(name) not in done)
        while names := tuple(islice(pending, size)):
            yield FilesUnit(self.place, names, tuple(map(id_of, names)))
        for shard in self.shards:
            if is_parquet(shard):
                yield from parquet_units(self.place, shard, id_of(shard), self.columns, done)
            else:
                yield from tar_units(self.place, shard, id_of(shard), done, UNIT_PICTURES)


def id_of(name: str) -> str:
    """A name as text that JSON can have; file names may have any bytes."""
    return name if name.isprintable() else os.fsencode(name).decode("utf-8", "backslashreplace")


def source_name(text: str) -> str:
    """IN as manifests have it: local paths are absolute."""
    return text.rstrip("/") if "://" in text else str(Path(text).absolute())


def open_source(text: str, endpoint_url: str | None = None, columns: ParquetColumns | None = None) -> Source:
    """List the files that IN names.

    Raises:
        SourceInvalid: it does not exist, cannot be read, or has no pictures; its Parquet files have no such columns.
        StorageFailed, PackageMissing: as `Place.open`.
    """
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in SCHEMES:
        raise SourceInvalid(f"{text} has the scheme {scheme}; expected {', '.join(SCHEMES)}, or a path")
    if separator and not rest:
        raise SourceInvalid(f"{text} names no bucket; expected {scheme}://BUCKET/PREFIX")
    columns = columns or ParquetColumns()
    # Absolute, for processes of a cluster have other working directories.
    path = Path(text).absolute()
    try:
        if separator:
            source = _remote(text, endpoint_url, columns)
        elif path.is_dir():
            source = _listed(Place(str(path)), Place(str(path)).walk(), columns)
        elif path.exists():
            source = _of_file(path, endpoint_url, columns)
        elif glob.has_magic(text):
            source = _of_glob(Path(text), columns)
        else:
            raise SourceInvalid(f"{text} does not exist; name a folder, a file, a quoted glob or an s3:// URI")
    except OSError as error:
        raise SourceInvalid(f"{error.filename or text} cannot be read: {error.strerror or error}") from error
    if not source.pictures and not source.shards:
        raise SourceInvalid(f"{text} has no pictures, tar shards or Parquet files")
    if tables := [name for name in source.shards if is_parquet(name)]:
        try:
            require_columns(source.place, tables, columns)
        except ImageUndecodable as error:
            raise SourceInvalid(error.detail) from error
    return source


def _listed(place: Place, names: Iterable[str], columns: ParquetColumns) -> Source:
    """What looks like a picture; where nothing does, the shards: a folder of pictures may also have tables of them."""
    pictures, shards = Names(), Names()
    for name in names:
        if is_shard(name):
            shards.append(name)
        elif is_picture(Path(name)):
            pictures.append(name)
    return Source(place, pictures) if pictures else Source(place, (), shards, columns)


def is_shard(name: str) -> bool:
    return name.lower().endswith((*TARS, PARQUET))


def is_parquet(name: str) -> bool:
    return name.lower().endswith(PARQUET)


def _of_file(path: Path, endpoint_url: str | None, columns: ParquetColumns) -> Source:
    place = Place(str(path.parent), endpoint_url)
    if is_shard(path.name):
        return Source(place, (), (path.name,), columns)
    if path.suffix.lower() in LISTS:
        return _of_lines(place, path, columns)
    return Source(place, (path.name,))


def _of_lines(place: Place, path: Path, columns: ParquetColumns) -> Source:
    """A path or URI a line, relative to the list's folder. Each is taken for a picture unless its suffix is a shard's.
    Empty lines, and those that begin with #, are left out."""
    pictures, shards, known = Names(), Names(), IdSet()
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if len(line) > MAX_LINE:
                raise SourceInvalid(
                    f"{path}: line {number} has more than {MAX_LINE} characters; expected a path a line"
                )
            name = line.strip()
            if name and not name.startswith("#") and known.add(name):
                (shards if is_shard(name) else pictures).append(name)
    return Source(place, pictures, shards, columns)


def _of_glob(pattern: Path, columns: ParquetColumns) -> Source:
    """Names are relative to the pattern's folders before its first wildcard. A hidden file is found only if the pattern
    spells the dot, as in a shell."""
    fixed = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    root = Path(*pattern.parts[:fixed]).absolute()
    # `**` within a name is `*` in a shell, and a ValueError here.
    parts = [part if part == "**" else re.sub(r"\*+", "*", part) for part in pattern.parts[fixed:]]
    found = {path.relative_to(root) for path in root.glob(str(Path(*parts))) if path.is_file()}
    if not any(part.startswith(".") for part in parts):
        found = {path for path in found if not any(part.startswith(".") for part in path.parts)}
    names = sorted(map(str, found))
    pictures = Names(name for name in names if not is_shard(name))
    return Source(Place(str(root)), pictures, Names(name for name in names if is_shard(name)), columns)


def _remote(uri: str, endpoint_url: str | None, columns: ParquetColumns) -> Source:
    """An object, or all objects below a prefix."""
    folder, _, name = uri.rpartition("/")
    if is_shard(name):
        return Source(Place(folder, endpoint_url), (), (name,), columns)
    if is_picture(Path(name)):
        return Source(Place(folder, endpoint_url), (name,))
    place = Place(uri.rstrip("/"), endpoint_url)
    return _listed(place, place.walk(), columns)
