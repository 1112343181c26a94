"""Shards: files with many pictures each, tar archives (WebDataset) and Parquet files.

A shard that is damaged is a sample of its own with an error, beside the pictures that can be read.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from model.errors import ImageTooLarge, ImageUndecodable
from service.batch.compact import IdSet, digest_of
from service.batch.samples import Sample, Unit, read_sample
from service.batch.storage import PARQUET, Place, StorageFailed, require_pyarrow, require_readable
from service.evaluation.dataset import is_picture

IMAGE_COLUMNS = ("image", "bytes", "image_bytes", "jpg", "png", "path", "file_name")
"""Names of the column of pictures, the preferred first, where none is given."""
BATCH_ROWS = 32
"""Rows of a Parquet file that are in memory at once, for each thread."""


@dataclass(frozen=True, slots=True)
class ParquetColumns:
    """The columns of pictures and of ids. None: one of IMAGE_COLUMNS; the number of the row."""

    image: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class TarRangeUnit:
    """Members of a local tar file without compression: id, offset in bytes and size in bytes of each."""

    place: Place
    name: str
    members: tuple[tuple[str, int, int], ...]

    @property
    def pictures(self) -> int:
        return len(self.members)

    def samples(self, done: Set[str]) -> Iterator[Sample]:
        try:
            shard = self.place.open(self.name)
        except OSError as error:
            raise StorageFailed(f"{self.place.file(self.name)} cannot be read any more: {error.strerror}") from error
        with shard as file:
            for member_id, offset, size in self.members:
                if member_id in done:
                    continue
                try:
                    require_readable(size)
                    file.seek(offset)
                    data = file.read(size)
                except (ImageTooLarge, OSError) as error:
                    yield Sample(member_id, _sample_error(error))
                    continue
                yield Sample(member_id, data if len(data) == size else _damaged("ends within this member"))


@dataclass(frozen=True, slots=True)
class TarUnit:
    """A whole tar file, which is read from its beginning to its end: a compressed one, or one of an object store."""

    place: Place
    name: str
    id: str
    done: frozenset[bytes]
    """Digests of ids."""

    @property
    def pictures(self) -> None:
        return None

    def samples(self, done: Set[str]) -> Iterator[Sample]:
        try:
            with self.place.open(self.name) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
                for member in _pictures_of(archive):
                    member_id = f"{self.id}/{_name_of(member)}"
                    if member_id in done or digest_of(member_id) in self.done:
                        continue
                    try:
                        require_readable(member.size)
                    except ImageTooLarge as error:
                        yield Sample(member_id, error)
                        continue
                    content = archive.extractfile(member)
                    assert content is not None  # it is a regular file
                    data = content.read()
                    yield Sample(member_id, data if len(data) == member.size else _damaged("ends within this member"))
        except (tarfile.TarError, OSError, EOFError) as error:
            if self.id not in done:
                yield Sample(self.id, _damaged(str(error)))


def tar_units(place: Place, name: str, shard_id: str, done: IdSet, size: int) -> Iterator[Unit]:
    """The pictures of a tar file, in units of `size`; as one unit where their places are not known without reading
    all of it."""
    if place.is_remote or "://" in name or not name.lower().endswith(".tar"):
        yield TarUnit(place, name, shard_id, done.digests_of_shard(shard_id))
        return
    members: list[tuple[str, int, int]] = []
    damage: Sample | None = None
    try:
        with place.open(name) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in _pictures_of(archive):
                member_id = f"{shard_id}/{_name_of(member)}"
                if member_id not in done:
                    members.append((member_id, member.offset_data, member.size))
                if len(members) == size:
                    yield TarRangeUnit(place, name, tuple(members))
                    members.clear()
    except (tarfile.TarError, OSError, EOFError) as error:
        damage = Sample(shard_id, _damaged(str(error)))
    if members:
        yield TarRangeUnit(place, name, tuple(members))
    if damage is not None:
        yield ErrorUnit(damage)


def _pictures_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # it keeps all, and a shard may have a million
        if member.isreg() and is_picture(Path(member.name)):
            yield member


def _name_of(member: tarfile.TarInfo) -> str:
    name = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return name.removeprefix("./")


def _damaged(why: str) -> ImageUndecodable:
    return ImageUndecodable(f"the shard is damaged: {why or 'it cannot be read'}; write it again")


def _sample_error(error: ImageTooLarge | OSError) -> ImageTooLarge | ImageUndecodable:
    return error if isinstance(error, ImageTooLarge) else ImageUndecodable(f"cannot be read: {error.strerror}")


@dataclass(frozen=True, slots=True)
class ParquetUnit:
    """A row group of a Parquet file; `first_row` is the number of its first row in the file. `done` are ids of it."""

    place: Place
    name: str
    id: str
    group: int
    first_row: int
    rows: int
    columns: ParquetColumns
    done: frozenset[str]

    @property
    def pictures(self) -> int:
        return self.rows - len(self.done)

    def samples(self, done: Set[str]) -> Iterator[Sample]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        assert self.columns.image is not None
        wanted = [name for name in (self.columns.image, self.columns.id) if name is not None]
        number = self.first_row
        try:
            with self.place.open(self.name) as source, pq.ParquetFile(source) as file:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[self.group], columns=wanted):
                    ids = batch.column(self.columns.id).to_pylist() if self.columns.id else None
                    for row, value in enumerate(batch.column(self.columns.image)):
                        row_id = f"{self.id}/{number}" if ids is None else str(ids[row])
                        number += 1
                        if row_id not in done and row_id not in self.done:
                            yield self._sample(row_id, value.as_py())
        except (pa.ArrowException, OSError) as error:
            damaged = f"{self.id}/row group {self.group}"
            if damaged not in done:
                yield Sample(damaged, _damaged(str(error)))

    def _sample(self, row_id: str, value: Any) -> Sample:  # noqa: ANN401  (any type of a column)
        if isinstance(value, dict):  # as Hugging Face's data sets have pictures
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return Sample(row_id, value)
        if isinstance(value, str):
            folder = str(PurePosixPath(self.name).parent)
            root = self.place.root if folder == "." else f"{self.place.root}/{folder}"
            return read_sample(Place(root, self.place.endpoint_url), value, row_id)
        return Sample(row_id, ImageUndecodable("the row has no picture"))


def parquet_units(place: Place, name: str, shard_id: str, columns: ParquetColumns, done: IdSet) -> Iterator[Unit]:
    """A unit for each row group. Raises PackageMissing; StorageFailed, as `Place.open`."""
    require_pyarrow(PARQUET)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with place.open(name) as source, pq.ParquetFile(source) as file:
            columns = _columns_of(file.schema_arrow, columns, shard_id)
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                ids = _ids_of(file, shard_id, columns, group, first) if done else ()
                of_group = frozenset(one for one in ids if one in done)
                unit = ParquetUnit(place, name, shard_id, group, first, rows, columns, of_group)
                if unit.pictures > 0:
                    yield unit
                first += rows
    except (pa.ArrowException, OSError, ImageUndecodable) as error:
        wrong = error if isinstance(error, ImageUndecodable) else _damaged(str(error))
        if shard_id not in done:
            yield ErrorUnit(Sample(shard_id, wrong))


def _ids_of(file: Any, shard_id: str, columns: ParquetColumns, group: int, first: int) -> Iterator[str]:  # noqa: ANN401
    """The ids of a row group's rows."""
    if columns.id is None:
        for number in range(file.metadata.row_group(group).num_rows):
            yield f"{shard_id}/{first + number}"
    else:
        yield from map(str, file.read_row_group(group, columns=[columns.id]).column(0).to_pylist())


def _columns_of(schema: Any, columns: ParquetColumns, shard: str) -> ParquetColumns:  # noqa: ANN401
    """Raises ImageUndecodable."""
    names: list[str] = schema.names
    image = columns.image or next((name for name in IMAGE_COLUMNS if name in names), None)
    missing = [name for name in (columns.image, columns.id) if name is not None and name not in names]
    if missing or image is None:
        lacks = ", ".join(missing) or f"any of {', '.join(IMAGE_COLUMNS)}"
        raise ImageUndecodable(
            f"{shard} lacks the column {lacks}; it has {', '.join(names)}; name one with --image-column, --id-column"
        )
    kind = schema.field(image).type
    if not _has_pictures(kind):
        raise ImageUndecodable(
            f"{shard} has {kind} in the column {image}; expected bytes, paths or structs of them; name another with "
            "--image-column"
        )
    return ParquetColumns(image, columns.id)


def _has_pictures(kind: Any) -> bool:  # noqa: ANN401
    """Whether a column of pyarrow's type `kind` may have pictures."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(position).name in ("bytes", "path") for position in range(kind.num_fields))
    if types.is_dictionary(kind):
        return _has_pictures(kind.value_type)
    text = (types.is_binary, types.is_large_binary, types.is_string, types.is_large_string, types.is_fixed_size_binary)
    return any(one(kind) for one in text)


def require_columns(place: Place, shards: Iterable[str], columns: ParquetColumns) -> None:
    """Look at the first Parquet file that can be read.

    Raises:
        ImageUndecodable: it has no column of pictures, or lacks one that is named.
        StorageFailed, PackageMissing: as `Place.open`.
    """
    require_pyarrow(PARQUET)
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in shards:
        try:
            with place.open(name) as source, pq.ParquetFile(source) as file:
                schema = file.schema_arrow
        except (pa.ArrowException, OSError):
            continue  # its row will have the error
        _columns_of(schema, columns, name)
        return


@dataclass(frozen=True, slots=True)
class ErrorUnit:
    """A shard that cannot be read at all."""

    sample: Sample

    @property
    def pictures(self) -> int:
        return 1

    def samples(self, done: Set[str]) -> Iterator[Sample]:
        if self.sample.id not in done:
            yield self.sample
