"""`convmlp embed`, as a process, with a service whose device is a fake."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.service.cli.convmlp_command import convmlp, url
from tests.service.frontend.rest_server import Rest, picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of different grey levels, one of them deeper, one broken, and a file that is no picture's."""
    (tmp_path / "pictures/deeper").mkdir(parents=True)
    for name, grey in (("b.png", 20), ("a.PNG", 10), ("deeper/c.png", 30)):
        (tmp_path / "pictures" / name).write_bytes(picture(grey))
    (tmp_path / "pictures/broken.jpg").write_bytes(b"no picture")
    (tmp_path / "pictures/notes.txt").write_text("no picture either")
    return tmp_path / "pictures"


async def test_a_folder_becomes_rows_with_names(rest: Rest, grpc_url: str, folder: Path, tmp_path: Path) -> None:
    """A row for each picture below the folder, in the order of the names beside it; over both transports the same.

    A picture that fails is named on stderr, and the status is 1.
    """
    found = []
    for transport in (url(rest), grpc_url):
        out = tmp_path / "vectors.npy"
        ran = await convmlp("embed", str(folder), "--out", str(out), "--url", transport)
        assert ran.status == 1
        assert ran.err.count("\n") == 1
        assert f"{folder}/broken.jpg: " in ran.err
        assert ran.lines == [f"3 vectors of 24 numbers -> {out}"]
        beside = json.loads((tmp_path / "vectors.json").read_bytes())
        names = [f"{folder}/{name}" for name in ("a.PNG", "b.png", "deeper/c.png")]
        assert beside == {"model": "fake_classify", "names": names}
        found.append(np.load(out))
        assert found[-1].dtype == np.float32
        assert found[-1][:, 0].tolist() == [10, 20, 30]
    assert np.array_equal(*found)
    assert not list(tmp_path.glob(".*"))  # noqa: ASYNC240


async def test_an_old_file_stays_if_nothing_was_embedded(rest: Rest, folder: Path, tmp_path: Path) -> None:
    """Where no picture has a vector, nothing is written; the status is 1."""
    out = tmp_path / "vectors.npy"
    out.write_bytes(b"old")
    ran = await convmlp("embed", str(folder / "broken.jpg"), "--out", str(out), "--url", url(rest))
    assert (ran.status, out.read_bytes()) == (1, b"old")
    assert not (tmp_path / "vectors.json").exists()


async def test_parquet_has_names_and_vectors(rest: Rest, folder: Path, tmp_path: Path) -> None:
    """The columns are `name` and `embedding`. Without pyarrow the error names the extra."""
    out = tmp_path / "vectors.parquet"
    ran = await convmlp("embed", str(folder / "b.png"), "--normalize", "--out", str(out), "--url", url(rest))
    if find_spec("pyarrow") is None:
        assert ran.status == 2
        assert "pyarrow" in ran.err
        assert "`parquet`" in ran.err
        return
    import pyarrow.parquet as pq

    assert ran.status == 0
    table = pq.read_table(out)
    assert table.schema.metadata[b"model"] == b"fake_classify"
    (row,) = table.to_pylist()
    assert row["name"] == str(folder / "b.png")
    assert np.linalg.norm(row["embedding"]) == pytest.approx(1)
