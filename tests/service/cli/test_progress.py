from __future__ import annotations

import asyncio
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from service.cli.progress import told_progress
from tests.service.frontend.rest_server import open_rest, picture


async def on_a_terminal(*arguments: str, stdout_too: bool) -> tuple[bytes, str]:
    """What `convmlp` writes to stdout, and to the terminal that is its stderr, and its stdout if so said."""
    ours, theirs = pty.openpty()
    shown = bytearray()
    ended = asyncio.Event()

    def read() -> None:
        try:
            data = os.read(ours, 65_536)
        except OSError:  # how Linux says that nobody holds the other end any more
            data = b""
        shown.extend(data)
        if not data:
            asyncio.get_running_loop().remove_reader(ours)
            ended.set()

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service.cli", *arguments),
        stdout=theirs if stdout_too else asyncio.subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
    )
    os.close(theirs)
    asyncio.get_running_loop().add_reader(ours, read)
    out, _ = await process.communicate()
    await ended.wait()
    os.close(ours)
    assert process.returncode == 0
    return out or b"", shown.decode()


@pytest.mark.parametrize("form", ["table", "--json", "--save"])
async def test_many_pictures_have_a_bar_on_a_terminal(tmp_path: Path, form: str) -> None:
    """The bar counts to the end, on stderr alone: what goes into a pipe is as without it."""
    files = [tmp_path / f"{grey}.png" for grey in (100, 101, 102)]
    for file in files:
        file.write_bytes(picture(int(file.stem)))
    extra = {"table": [], "--json": ["--json"], "--save": ["--save", f"{tmp_path}/drawn/"]}[form]
    async with open_rest() as rest:
        arguments = ["classify", *map(str, files), *extra, "--url", str(rest.http.base_url)]
        out, shown = await on_a_terminal(*arguments, stdout_too=False)
        assert "3/3" in re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", " ", shown).split()
        assert b"\x1b" not in out
        assert out.count(b"fake_classify") == {"table": 3, "--json": 1, "--save": 0}[form]
        one, alone = await on_a_terminal("classify", str(files[0]), *arguments[4:], stdout_too=False)
        assert one
        assert alone == ""


async def test_tables_on_the_same_terminal_are_their_own_progress(tmp_path: Path) -> None:
    """Nothing is written through what is read."""
    file = tmp_path / "grey.png"
    file.write_bytes(picture())
    async with open_rest() as rest:
        _, shown = await on_a_terminal(
            "classify", str(file), str(file), "--url", str(rest.http.base_url), stdout_too=True
        )
    assert "2/2" not in shown
    assert shown.count("fake_classify") == 2


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """A log file is not filled with bars."""
    with told_progress(5, printing=False) as done:
        done()
    assert capsys.readouterr() == ("", "")
