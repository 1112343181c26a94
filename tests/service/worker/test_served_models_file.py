"""The file that a restarted worker reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.errors import BundleInvalid
from service.settings import Settings
from service.worker.served_models_file import ServedModels, ServedModelsFile, require_models

CONFIGURED = ServedModels(("a", "b"))
SPLIT = {"a": {"1": 90.0, "2": 10.0}}


def test_what_is_served_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Names are read in their order, an empty set too, with the splits, and the folder has no other file."""
    path = tmp_path / "served.json"
    for served in (
        ServedModels(("b", "c")),
        ServedModels(("c", "b", "a", "a@2"), SPLIT),
        ServedModels(()),
    ):
        ServedModelsFile(path, CONFIGURED).write(served)
        assert ServedModelsFile(path, CONFIGURED).read() == served
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_file_the_configured_models_are_served(tmp_path: Path) -> None:
    """Without a file, and without a path for one, the configured models are served with the configured splits."""
    configured = ServedModels(("a", "a@2"), SPLIT)
    assert ServedModelsFile(tmp_path / "served.json", configured).read() == configured
    nowhere = ServedModelsFile(None, configured)
    nowhere.write(ServedModels(("c",)))
    assert nowhere.read() == configured


def test_the_file_of_a_release_without_splits_is_read(tmp_path: Path) -> None:
    """An update of the service keeps the models that callers loaded."""
    path = tmp_path / "served.json"
    path.write_text('{"configured": ["a", "b"], "served": ["c"]}')
    assert ServedModelsFile(path, CONFIGURED).read() == ServedModels(("c",))


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
        b'{"configured": ["a", "b"], "served": ["c"], "splits": {"c": {"2": "all"}}}',
        b'{"configured": ["other"], "served": ["c"]}',
        b'{"configured": ["a", "b"], "configured_splits": {"a": {"2": 100}}, "served": ["c"]}',
    ],
)
def test_an_unusable_file_is_ignored(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged, half-written or outdated file is ignored with a warning: what is configured is served."""
    path = tmp_path / "served.json"
    path.write_bytes(content)
    assert ServedModelsFile(path, CONFIGURED).read() == CONFIGURED
    assert "serving the configured ones" in capsys.readouterr().out


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    """Where the path is a folder, or its folder is missing, the caller gets the error and no temporary file stays."""
    (tmp_path / "served.json").mkdir()
    with pytest.raises(OSError, match=r"served\.json"):
        ServedModelsFile(tmp_path / "served.json", CONFIGURED).write(ServedModels(("c",)))
    assert [path.name for path in tmp_path.iterdir()] == ["served.json"]
    with pytest.raises(FileNotFoundError):
        ServedModelsFile(tmp_path / "missing" / "served.json", CONFIGURED).write(ServedModels(("c",)))
    assert ServedModelsFile(tmp_path / "served.json", CONFIGURED).read() == CONFIGURED


def test_models_that_do_not_exist_are_found_before_they_are_loaded(tmp_path: Path) -> None:
    """A folder of models that is none is named, and a configured model that is nowhere; one that callers unloaded may
    be missing."""
    with pytest.raises(BundleInvalid, match="nowhere is not a folder"):
        require_models(Settings(models_dir=tmp_path / "nowhere"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.json").touch()
    settings = Settings(models_dir=tmp_path, models=("a", "b"), served_models_file=tmp_path / "served.json")
    with pytest.raises(BundleInvalid, match="there is no model 'a' in the store"):
        require_models(settings)
    ServedModelsFile(settings.served_models_file, ServedModels.configured(settings)).write(ServedModels(("b", "c")))
    require_models(settings)
