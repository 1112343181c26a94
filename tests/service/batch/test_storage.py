from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from service.batch.compact import IdSet
from service.batch.sources import SourceInvalid, open_source
from service.batch.storage import PackageMissing, Place, StorageFailed
from tests.service.batch.object_store import ObjectStore, object_store
from tests.service.batch.pictures import picture, write_tar

OBJECTS = {f"pictures/train/{folder}/{number}.jpg": picture(number) for folder in "ab" for number in range(12)}


@pytest.fixture
def store(tmp_path: Path, credentials: dict[str, str]) -> Iterator[ObjectStore]:  # noqa: ARG001
    """A store with pictures, and with a shard."""
    pytest.importorskip("pyarrow")
    write_tar(tmp_path / "0.tar", {f"{number}.jpg": picture(number) for number in range(5)})
    with object_store({**OBJECTS, "pictures/shards/0.tar": (tmp_path / "0.tar").read_bytes()}) as running:
        yield running


def test_pictures_of_an_object_store(store: ObjectStore) -> None:
    """Ids are keys below the prefix. What is done is not read; an object that was deleted meanwhile has an error."""
    source = open_source("s3://pictures/train", store.url)
    store.objects = {name: data for name, data in store.objects.items() if not name.endswith("a/3.jpg")}
    before = store.requests
    done = {f"b/{number}.jpg" for number in range(12)}
    found = {one.id: one.data for unit in source.units(IdSet(done), threads=1) for one in unit.samples(frozenset())}
    assert store.requests - before <= 3 * len(found)
    assert sorted(found) == sorted(f"a/{number}.jpg" for number in range(12))
    missing = found.pop("a/3.jpg")
    assert str(missing) == "cannot be read: there is no such object"
    assert all(data == OBJECTS[f"pictures/train/{name}"] for name, data in found.items())
    (unit,) = open_source("s3://pictures/train/a/1.jpg", store.url).units(IdSet(), threads=1)
    assert [one.id for one in unit.samples(frozenset())] == ["1.jpg"]


def test_a_shard_of_an_object_store(store: ObjectStore) -> None:
    """It is read once, from its beginning to its end; members that are done are left out."""
    (unit,) = open_source("s3://pictures/shards", store.url).units(IdSet(["0.tar/2.jpg"]), threads=1)
    assert unit.pictures is None
    found = list(unit.samples(frozenset({"0.tar/4.jpg"})))
    assert [one.id for one in found] == ["0.tar/0.jpg", "0.tar/1.jpg", "0.tar/3.jpg"]
    assert found[1].data == picture(1)


def test_a_store_that_fails_is_no_pictures_fault(store: ObjectStore) -> None:
    """After its attempts the error is the store's; a prefix without objects is an error of IN."""
    place = Place("s3://pictures/train", store.url)
    assert place.read("a/1.jpg") == OBJECTS["pictures/train/a/1.jpg"]
    store.broken = True
    with pytest.raises(StorageFailed, match="the object store cannot be read"):
        place.read("a/1.jpg")
    with pytest.raises(SourceInvalid, match="cannot be read"):
        open_source("s3://pictures/none", store.url)


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_without_pyarrow_the_error_names_the_extra() -> None:
    """What needs it is refused before anything is scored."""
    with pytest.raises(
        PackageMissing, match="s3:// needs pyarrow, which is not installed; install this package's extra"
    ):
        open_source("s3://pictures/train")
