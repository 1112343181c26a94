"""The file that a restarted worker reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.worker.model_registry import StateFile

CONFIGURED = ("a", "b")


def test_names_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Names are read in their order, an empty set too, and the folder has no other file."""
    path = tmp_path / "served.json"
    for served in (("b", "c"), ("c", "b", "a"), ()):
        StateFile(path, CONFIGURED).write(served)
        assert StateFile(path, CONFIGURED).read() == served
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_file_the_configured_models_are_served(tmp_path: Path) -> None:
    """Without a file, and without a path for one, the configured models are served."""
    assert StateFile(tmp_path / "served.json", CONFIGURED).read() == CONFIGURED
    nowhere = StateFile(None, CONFIGURED)
    nowhere.write(("c",))
    assert nowhere.read() == CONFIGURED


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[]",
        b'{"configured": ["a", "b"]}',
        b'{"configured": ["a", "b"], "served": [1]}',
        b'{"configured": ["a", "b"], "served": ["c"',
        b'{"configured": ["other"], "served": ["c"]}',
    ],
)
def test_an_unusable_file_is_ignored(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged, half-written or outdated file is ignored with a warning: the configured models are served."""
    path = tmp_path / "served.json"
    path.write_bytes(content)
    assert StateFile(path, CONFIGURED).read() == CONFIGURED
    assert "serving the configured ones" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """Where the path is a folder, or its folder is missing, the caller gets the error and no temporary file stays."""
    (tmp_path / "served.json").mkdir()
    with pytest.raises(OSError, match=r"served\.json"):
        StateFile(tmp_path / "served.json", CONFIGURED).write(("c",))
    assert [path.name for path in tmp_path.iterdir()] == ["served.json"]
    with pytest.raises(FileNotFoundError):
        StateFile(tmp_path / "missing" / "served.json", CONFIGURED).write(("c",))
    assert StateFile(tmp_path / "served.json", CONFIGURED).read() == CONFIGURED
