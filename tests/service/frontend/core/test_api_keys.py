"""The file of API keys: what it may hold, and that it is followed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.frontend.core.auth import MAX_FILE_BYTES, ApiKeys, InvalidKeysFile
from tests.waiting import until

KEY = "0123456789abcdef"
OTHER = "fedcba9876543210"


def keys_of(folder: Path, text: str) -> ApiKeys:
    path = folder / "keys"
    path.write_text(text, encoding="utf-8")
    return ApiKeys(path)


def test_lines_with_and_without_names(tmp_path: Path) -> None:
    """A line is a key, or a name and a key; comments, blank lines and spaces around do not matter."""
    keys = keys_of(tmp_path, f"# keys\n\n  partner \t {KEY}  # since May\r\n{OTHER}\n")
    assert keys.name_of(KEY) == "partner"
    assert keys.name_of(OTHER) == "key of line 4"


@pytest.mark.parametrize("wrong", ["", KEY[:-1], f"{KEY}0", KEY.upper(), "partner", f"partner {KEY}", "é" * 16, "\x00"])
def test_wrong_keys_are_nobody_s(tmp_path: Path, wrong: str) -> None:
    """Only the whole key will do; a name, or part of a key, is none."""
    assert keys_of(tmp_path, f"partner {KEY}\n").name_of(wrong) is None


def test_two_keys_of_one_name(tmp_path: Path) -> None:
    """A caller may hold two keys while it goes from one to the other."""
    keys = keys_of(tmp_path, f"partner {KEY}\npartner {OTHER}\n")
    assert keys.name_of(KEY) == keys.name_of(OTHER) == "partner"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no API key"),
        ("# nothing\n\n", "no API key"),
        ("a b c\n", "line 1"),
        (f"{KEY}\nshort\n", "line 2"),
        (f"name {KEY[:-1]}\n", "at least 16"),
        (f"{KEY}ä\n", "line 1"),
        (f"{KEY}\nother {KEY}\n", "earlier line"),
        ("x" * (MAX_FILE_BYTES + 1), "bytes"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    """The error names the fault and its place, and quotes no key."""
    with pytest.raises(InvalidKeysFile, match=words) as refused:
        keys_of(tmp_path, text)
    assert str(tmp_path / "keys") in str(refused.value)
    assert KEY[:8] not in str(refused.value)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    """A missing path and a folder are errors of their own."""
    with pytest.raises(InvalidKeysFile, match="No such file"):
        ApiKeys(tmp_path / "keys")
    with pytest.raises(InvalidKeysFile, match="directory"):
        ApiKeys(tmp_path)


@contextlib.asynccontextmanager
async def followed(keys: ApiKeys) -> AsyncIterator[None]:
    following = asyncio.create_task(keys.follow(interval_s=0.005))
    try:
        yield
    finally:
        following.cancel()


async def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """New keys hold and old ones end without a restart, also where the file is a link that is turned."""
    (tmp_path / "first").write_text(f"{KEY}\n", encoding="ascii")
    (tmp_path / "second").write_text(f"{OTHER}\n", encoding="ascii")
    link = tmp_path / "keys"
    link.symlink_to("first")
    keys = ApiKeys(link)
    async with followed(keys):
        new = tmp_path / "new"
        new.symlink_to("second")
        os.replace(new, link)  # noqa: PTH105
        await until(lambda: keys.name_of(OTHER) is not None)
        assert keys.name_of(KEY) is None
        (tmp_path / "second").write_text(f"{KEY}\n{OTHER}\n", encoding="ascii")
        await until(lambda: keys.name_of(KEY) is not None)


async def test_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    """An invalid or missing file is logged once; the last valid keys stay until a valid file is there."""
    keys = keys_of(tmp_path, f"{KEY}\n")
    path = tmp_path / "keys"
    with capture_logs() as logs:
        async with followed(keys):
            path.write_text("", encoding="ascii")
            await until(lambda: len(logs) == 1)
            path.unlink()
            await until(lambda: len(logs) == 2)
            await asyncio.sleep(0.05)  # ten more looks at the file
            assert [line["log_level"] for line in logs] == ["error", "error"]
            assert keys.name_of(KEY) is not None
            path.write_text(f"{OTHER}\n", encoding="ascii")
            await until(lambda: keys.name_of(OTHER) is not None)
            assert keys.name_of(KEY) is None
    assert KEY not in str(logs)
    assert OTHER not in str(logs)
