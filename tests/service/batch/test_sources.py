from __future__ import annotations

from collections import Counter
from collections.abc import Set
from itertools import islice
from pathlib import Path

import pytest

from model.errors import ImageUndecodable
from service.batch.compact import IdSet
from service.batch.samples import Sample
from service.batch.shards import ParquetColumns
from service.batch.sources import SourceInvalid, open_source
from service.batch.storage import StorageFailed
from tests.service.batch.pictures import picture, write_pictures, write_tar

NOTHING: frozenset[str] = frozenset()


def samples_of(text: Path | str, done: Set[str] = NOTHING, columns: ParquetColumns | None = None) -> list[Sample]:
    """All samples of IN, as a job gets them that has `done`."""
    units = list(open_source(str(text), columns=columns).units(IdSet(done), threads=2))
    assert all(unit.pictures is None or unit.pictures > 0 for unit in units)
    return [sample for unit in units for sample in unit.samples(NOTHING)]


def ids(samples: list[Sample]) -> list[str]:
    return [sample.id for sample in samples]


def test_a_folder_has_what_looks_like_a_picture(tmp_path: Path) -> None:
    """At any depth, in a fixed order, readable or not; hidden files, texts and shards beside pictures are left out."""
    names = write_pictures(tmp_path, 9)
    (tmp_path / "broken.PNG").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("a/000.jpg")
    (tmp_path / ".hidden.jpg").write_bytes(picture(1))
    (tmp_path / "table.parquet").write_bytes(b"")
    found = samples_of(tmp_path)
    assert ids(found) == ["broken.PNG", *names]
    assert found[0].data == b""
    assert found[1].data == picture(0, width=64)


def test_what_is_done_is_left_out(tmp_path: Path) -> None:
    """A unit has only pictures without a row; few pictures are spread over the threads."""
    names = write_pictures(tmp_path, 20)
    assert ids(samples_of(tmp_path, set(names[:15]))) == names[15:]
    units = list(open_source(str(tmp_path)).units(IdSet(), threads=2))
    assert max(unit.pictures or 0 for unit in units) <= 20 // 2


def test_a_glob_and_a_list(tmp_path: Path) -> None:
    """Ids are relative to the folder before the first wildcard, or as the list has them; hidden files need a dot in
    the pattern. A list's repeats are one picture; what cannot be read is a sample with its error."""
    write_pictures(tmp_path, 6)
    (tmp_path / "a/._000.jpg").write_bytes(b"")
    assert ids(samples_of(f"{tmp_path}/*/00[0-3].jpg")) == ["a/000.jpg", "a/002.jpg", "b/001.jpg", "b/003.jpg"]
    assert ids(samples_of(f"{tmp_path}/**/*.jpg"))[0] == "a/000.jpg"
    assert ids(samples_of(f"{tmp_path}/a/**.jpg")) == ["000.jpg", "002.jpg", "004.jpg"]
    assert ids(samples_of(f"{tmp_path}/a/.*.jpg")) == ["._000.jpg"]
    absolute = str(tmp_path / "b/001.jpg")
    (tmp_path / "some.txt").write_text(f"\ufeff# comment\na/000.jpg\n\n{absolute}\nmissing\na/000.jpg\n")
    found = samples_of(tmp_path / "some.txt")
    assert ids(found) == ["a/000.jpg", absolute, "missing"]
    assert isinstance(found[2].data, ImageUndecodable)
    assert str(found[2].data) == "cannot be read: No such file or directory"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_tar_shard(tmp_path: Path, suffix: str) -> None:
    """Each picture's id is the shard's path and the member's name; the other members of its key are left out."""
    for shard in ("0", "1"):
        members = {
            f"{key}.{form}": picture(key) if form == "jpg" else b"7" for key in range(3) for form in ("jpg", "cls")
        }
        write_tar(tmp_path / f"{shard}{suffix}", members)
    found = samples_of(tmp_path, {f"0{suffix}/1.jpg"})
    assert ids(found) == [f"0{suffix}/0.jpg", f"0{suffix}/2.jpg", *(f"1{suffix}/{key}.jpg" for key in range(3))]
    assert found[1].data == picture(2)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_a_damaged_shard_is_a_sample_with_an_error(tmp_path: Path, suffix: str) -> None:
    """What is before the damage is read, each picture once; another shard is not affected."""
    write_tar(tmp_path / f"good{suffix}", {"a.jpg": picture(1)})
    write_tar(tmp_path / f"cut{suffix}", {f"{key}.jpg": picture(key, "BMP") for key in range(9)})
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(path.read_bytes()[:60_000])
    found = {sample.id: sample.data for sample in samples_of(tmp_path)}
    assert found[f"good{suffix}/a.jpg"] == picture(1)
    assert found[f"cut{suffix}/0.jpg"] == picture(0, "BMP")
    assert "the shard is damaged: " in str(found[f"cut{suffix}"])
    assert max(Counter(ids(samples_of(tmp_path))).values()) == 1


def test_a_parquet_file(tmp_path: Path) -> None:
    """A column of bytes, of paths, or of structs as Hugging Face has them; a unit for each row group. Rows without a
    picture, and files without such a column, have an error."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "0.jpg").write_bytes(picture(0))
    pq.write_table(
        pa.table({"image": [picture(0), picture(1), None], "name": ["x", "y", "z"]}),
        tmp_path / "t.parquet",
        row_group_size=2,
    )
    found = samples_of(tmp_path / "t.parquet", {"t.parquet/0"})
    assert found[0] == ("t.parquet/1", picture(1))
    assert str(found[1].data) == "the row has no picture"
    named = samples_of(tmp_path / "t.parquet", columns=ParquetColumns("image", "name"))
    assert ids(named) == ["x", "y", "z"]
    assert ids(samples_of(tmp_path / "t.parquet", {"x", "z"}, ParquetColumns("image", "name"))) == ["y"]
    pq.write_table(pa.table({"path": ["0.jpg"]}), tmp_path / "paths.parquet")
    pq.write_table(pa.table({"image": [{"bytes": picture(1), "path": None}]}), tmp_path / "hf.parquet")
    assert samples_of(tmp_path / "paths.parquet")[0].data == picture(0)
    assert samples_of(tmp_path / "hf.parquet")[0].data == picture(1)


def test_parquet_files_without_pictures_are_refused(tmp_path: Path) -> None:
    """Before anything is scored, with the columns that there are; a damaged file, or one behind the first, is a row
    with its error."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    (tmp_path / "0.parquet").write_bytes(b"damaged")
    pq.write_table(pa.table({"other": [1], "image": [1.5]}), tmp_path / "1.parquet")
    for columns, message in (
        (None, "has double in the column image; expected bytes, paths or structs of them"),
        (ParquetColumns("photo"), "1.parquet lacks the column photo; it has other, image; name one with"),
        (ParquetColumns("other", "key"), "lacks the column key"),
    ):
        with pytest.raises(SourceInvalid, match=message):
            open_source(str(tmp_path), columns=columns)
    pq.write_table(pa.table({"jpg": [picture(0)]}), tmp_path / "0.parquet")
    found = samples_of(tmp_path)
    assert ids(found) == ["0.parquet/0", "1.parquet"]
    assert "has double in the column image" in str(found[1].data)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    """The error names what was expected."""
    for text, message in (
        (str(tmp_path), "has no pictures, tar shards or Parquet files"),
        (f"{tmp_path}/missing", "does not exist; name a folder"),
        ("ftp://host/folder", "has the scheme ftp; expected s3, gs"),
        ("s3://", "names no bucket"),
    ):
        with pytest.raises(SourceInvalid, match=message):
            open_source(text)


def test_units_do_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """IN may be relative; processes of a cluster read its files from other working directories."""
    write_pictures(tmp_path / "in", 4)
    (tmp_path / "in/some.txt").write_text("a/000.jpg\n")
    write_tar(tmp_path / "in/shard.tar", {"a.jpg": picture(1)})
    monkeypatch.chdir(tmp_path)
    units = [
        unit
        for text in ("in", "in/*/*.jpg", "in/some.txt", "in/shard.tar")
        for unit in open_source(text).units(IdSet(), 1)
    ]
    monkeypatch.chdir("/")
    assert all(isinstance(sample.data, bytes) for unit in units for sample in unit.samples(NOTHING))


def test_a_folder_that_disappears_is_no_pictures_fault(tmp_path: Path) -> None:
    """A file that was deleted is an error of its own; a folder that is missing, on a node for example, ends the job."""
    write_pictures(tmp_path / "in", 4)
    write_tar(tmp_path / "shards/0.tar", {"a.jpg": picture(1)})
    (unit,) = open_source(f"{tmp_path}/in/*/000.jpg").units(IdSet(), 1)
    (shard,) = open_source(f"{tmp_path}/shards").units(IdSet(), 1)
    (tmp_path / "in/a/000.jpg").unlink()
    (sample,) = unit.samples(NOTHING)
    assert isinstance(sample.data, ImageUndecodable)
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageFailed, match=r"the folder .*/in does not exist on .*; all nodes must have it"):
        list(unit.samples(NOTHING))
    (tmp_path / "shards/0.tar").unlink()
    with pytest.raises(StorageFailed, match=r"0.tar cannot be read any more: No such file or directory"):
        list(shard.samples(NOTHING))


def test_units_of_a_large_shard_are_listed_as_they_are_needed(tmp_path: Path) -> None:
    """The first unit is there before the last member is read."""
    write_tar(tmp_path / "many.tar", {f"{number}.png": b"x" for number in range(200)})
    units = open_source(str(tmp_path / "many.tar")).units(IdSet(), threads=1)
    assert [unit.pictures for unit in islice(units, 2)] == [32, 32]
    assert sum(unit.pictures or 0 for unit in units) == 136
