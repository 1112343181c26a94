"""The runtime folder, with real folders and locks: where it lies, what is removed, and that it comes back."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.supervision.runtime_folder import MAX_PATH, PREFIX, NoRuntimeFolder, RuntimeFolder, runtime_parents


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a short path, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="convmlp-test-") as folder:
        yield Path(folder)


def test_it_lies_in_the_first_place_that_takes_one(place: Path) -> None:
    """It is private, and removed after its use."""
    with RuntimeFolder([place / "absent", place]) as folder:
        assert folder.path.parent == place
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        (folder.path / "file").touch()
    assert list(place.iterdir()) == []


def test_a_place_with_a_long_path_is_passed_over(place: Path) -> None:
    """Sockets have short paths. The message of the error has each place and its reason."""
    deep = place / ("x" * MAX_PATH)
    deep.mkdir()
    with RuntimeFolder([deep, place]) as folder:
        assert folder.path.parent == place
        assert list(deep.iterdir()) == []
    with pytest.raises(NoRuntimeFolder, match=r"too long.*absent"):
        RuntimeFolder([deep, place / "absent"])


def test_the_users_choice_comes_first(place: Path) -> None:
    """XDG_RUNTIME_DIR, then the system's places, then the temporary folder. A session's folder is not used without
    lingering, because it vanishes at logout."""
    session = Path(f"/run/user/{os.geteuid()}")
    parents = runtime_parents({"XDG_RUNTIME_DIR": str(place)})
    assert parents[0] == place
    assert parents[-2] == Path("/run")
    lingers = session in runtime_parents({})
    assert (session in runtime_parents({"XDG_RUNTIME_DIR": str(session)})) == lingers


def test_leftovers_are_removed_and_nothing_else(place: Path) -> None:
    """Folders of killed services go; those of living ones, of others, and what a link leads to stay."""
    leftover = place / f"{PREFIX}leftover"
    (leftover / "metrics").mkdir(parents=True)
    target = place / "target"
    target.mkdir()
    (target / "precious").touch()
    (place / f"{PREFIX}link").symlink_to(target)
    (place / f"{PREFIX}file").touch()
    with RuntimeFolder([place]) as living, RuntimeFolder([place]) as second:
        assert not leftover.exists()
        assert living.path.exists()
        assert second.path.exists()
        assert (target / "precious").exists()


def test_a_child_process_keeps_the_folder(place: Path) -> None:
    """While a process that inherited the lock lives, its folder is no leftover, though the supervisor has died."""
    first = RuntimeFolder([place])
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[first.lock])
    os.close(first.lock)  # as the kernel does when the supervisor is killed
    with RuntimeFolder([place]):
        assert first.path.exists()
    child.communicate()
    with RuntimeFolder([place]):
        assert not first.path.exists()


def test_a_deleted_folder_is_made_again(place: Path) -> None:
    """It comes back where it was, locked, and not before its place does."""
    parent = place / "run"
    parent.mkdir()
    with RuntimeFolder([parent]) as folder:
        folder.restore()
        shutil.rmtree(parent)
        folder.restore()
        assert not folder.path.exists()
        parent.mkdir()
        folder.restore()
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        with RuntimeFolder([parent]):
            assert folder.path.exists()


def test_what_stands_in_its_place_is_used_only_if_it_is_safe(place: Path) -> None:
    """A folder of the same user becomes private and locked. What is no folder stays as it is."""
    with RuntimeFolder([place]) as folder:
        folder.path.rmdir()
        folder.path.mkdir(mode=0o755)
        folder.restore()
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        with RuntimeFolder([place]):
            assert folder.path.exists()
        folder.path.rmdir()
        folder.path.symlink_to(place)
        folder.restore()
        assert folder.path.is_symlink()
        folder.path.unlink()
        folder.restore()
        assert folder.path.is_dir()
