"""Measurements that a worker keeps for its next start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.worker.state_folder import MAX_FILES, NOTHING_KEPT, StateFolder

KEY = ("a model", "a processor")


def files(folder: Path) -> list[Path]:
    return sorted((folder / "measurements").iterdir())


def test_a_measurement_is_read_as_it_was_written(tmp_path: Path) -> None:
    """By kind and key; the last one counts; the folder has one file for it and no temporary one."""
    state = StateFolder(tmp_path / "new" / "folder")
    assert state.read("start", KEY, float) is None
    for seconds in (3.5, 4.5):
        state.write("start", KEY, seconds)
        assert StateFolder(tmp_path / "new" / "folder").read("start", KEY, float) == seconds
    assert state.read("start", ("a model", "another processor"), float) is None
    assert state.read("batch", KEY, float) is None
    assert len(files(tmp_path / "new" / "folder")) == 1


@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"[]", b"\xff", b"0" * (1 << 20), b'{"key": ["1"], "value": 1.0}']
)
def test_a_damaged_file_is_replaced_by_the_next_measurement(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is damaged, or of another key, counts as no measurement, with a warning."""
    state = StateFolder(tmp_path)
    state.write("start", KEY, 3.5)
    (path,) = files(tmp_path)
    path.write_bytes(content)
    assert state.read("start", KEY, float) is None
    assert "damaged" in capsys.readouterr().out
    state.write("start", KEY, 4.5)
    assert state.read("start", KEY, float) == 4.5


def test_a_value_of_another_type_counts_as_none(tmp_path: Path) -> None:
    """A file whose value is not of the type that is asked for is as good as damaged."""
    state = StateFolder(tmp_path)
    state.write("start", KEY, "soon")
    assert state.read("start", KEY, float) is None


def test_a_fifo_in_the_place_of_a_file_does_not_hold_the_reader(tmp_path: Path) -> None:
    """A start never waits for a writer who does not come; the next measurement takes the FIFO's place."""
    state = StateFolder(tmp_path)
    state.write("start", KEY, 3.5)
    (path,) = files(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert state.read("start", KEY, float) is None
    state.write("start", KEY, 4.5)
    assert state.read("start", KEY, float) == 4.5


def test_a_folder_that_cannot_be_used_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is kept, nothing fails, and the log has one line about it."""
    (tmp_path / "file").write_text("no folder")
    state = StateFolder(tmp_path / "file")
    for _ in range(3):
        state.write("start", KEY, 3.5)
        assert state.read("start", KEY, float) is None
    assert capsys.readouterr().out.count("the next start measures again") == 1


def test_without_a_folder_nothing_is_kept() -> None:
    """Neither read nor written, and no error."""
    NOTHING_KEPT.write("start", KEY, 3.5)
    assert NOTHING_KEPT.read("start", KEY, float) is None


def test_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    """Beyond the bound the oldest measurements go, and with them the temporary files of processes that were killed."""
    state = StateFolder(tmp_path)
    state.write("start", ("first",), 0.0)
    (tmp_path / "measurements" / ".start-0.json-killed").touch()
    for path in files(tmp_path):
        os.utime(path, (0, 0))
    for number in range(MAX_FILES):
        state.write("start", (str(number),), float(number))
    assert len(files(tmp_path)) == MAX_FILES
    assert state.read("start", ("first",), float) is None
    assert all(state.read("start", (str(number),), float) == number for number in range(MAX_FILES))
