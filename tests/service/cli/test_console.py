from __future__ import annotations

import asyncio
import os
import pty
import re
import sys
from pathlib import Path

import pytest

from convmlp_client.geometry import ImageSize
from convmlp_client.results import Classification, Label, Meta, Task
from service.cli.console import image_progress, number_column, print_table, text_column
from service.cli.printers import print_result
from tests.service.cli.convmlp_command import url
from tests.service.frontend.rest_server import Rest


def test_names_and_labels_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters and broken UTF-8 are replaced; what looks like markup or an emoji is plain text."""
    labels = (Label("[red]:cat:\x1b[31m\r\n", 0, 0.5),)
    result = Classification(ImageSize(4, 3), labels, Meta("model", Task.CLASSIFY))
    print_result("a\x1b]0;title\x07\udcff.png", result)
    title, _, row = capsys.readouterr().out.splitlines()
    assert title == "a\ufffd]0;title\ufffd\ufffd.png  4 x 3  model"
    assert row == "[red]:cat:\ufffd[31m\ufffd\ufffd  0.5000"


def test_a_long_label_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A row is one line however long its cells are; only a column with a maximum width cuts them."""
    print_table(
        [text_column("label"), text_column("licence", max_width=8), number_column("n")],
        [["word " * 60, "free for all", "1"]],
    )
    _, row = capsys.readouterr().out.splitlines()
    assert row == f"{'word ' * 60}  free fo…  1"


async def on_a_terminal(*arguments: str, stdout_too: bool) -> tuple[bytes, str]:
    """What `convmlp` writes to stdout, and to the terminal that is its stderr, and with `stdout_too` its stdout."""
    ours, theirs = pty.openpty()
    shown = bytearray()
    ended = asyncio.Event()

    def read() -> None:
        try:
            data = os.read(ours, 65_536)
        except OSError:  # Linux: the other end is closed
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
async def test_several_images_have_a_progress_bar(rest: Rest, files: list[str], tmp_path: Path, form: str) -> None:
    """The bar counts all images, on stderr alone: stdout is as without it. A single image has none."""
    extra = {"table": [], "--json": ["--json"], "--save": ["--save", f"{tmp_path}/drawn/"]}[form]
    flags = [*extra, "--url", url(rest)]
    out, shown = await on_a_terminal("classify", *files[:3], *flags, stdout_too=False)
    assert "3/3" in re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", " ", shown).split()
    assert b"\x1b" not in out
    assert len(out.splitlines()) == {"table": 3, "--json": 1, "--save": 3}[form]
    out, shown = await on_a_terminal("classify", files[0], *flags, stdout_too=False)
    assert out
    assert shown == ""


async def test_lines_on_the_same_terminal_are_above_the_bar(rest: Rest, files: list[str]) -> None:
    """Each line begins where the bar was, which is erased before, and drawn again below it."""
    _, shown = await on_a_terminal("classify", *files[:2], "--url", url(rest), stdout_too=True)
    erased = "\r\x1b[2K"
    for file in files[:2]:
        assert f"{erased}{file}  grey" in shown
    assert "2/2" in shown.rpartition(f"{erased}{files[1]}")[2]


def test_without_a_terminal_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """A log file has no progress bars."""
    with image_progress(5) as done:
        done()
    assert capsys.readouterr() == ("", "")
