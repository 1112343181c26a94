"""What commands print: messages on stderr, tables on stdout, progress bars on a terminal.

`rich` is imported by the functions that draw with it: a container's health check prints one line and needs none of it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import typer

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Column

MAX_LINE_WIDTH = 1000
"""Characters of a table's line that is not wrapped. A table takes no more than it needs."""

STEP_PERCENT = 10
"""How often the progress of a download is printed where stderr is no terminal."""


def printable(text: str) -> str:
    """`text` with every character replaced that could control a terminal or cannot be written.

    File names and labels may contain anything.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_error(message: str) -> None:
    """Print `convmlp: MESSAGE` on stderr."""
    _print(f"convmlp: {printable(message)}", err=True)


def print_line(text: str) -> None:
    """Print a line, or several, on stdout."""
    _print(text, err=False)


_bar: Progress | None = None
"""What is drawn on stderr now. A line on the same terminal goes above it."""


def _print(text: str, *, err: bool) -> None:
    if _bar is not None and (err or sys.stdout.isatty()):
        _bar.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
    elif err:
        typer.echo(text, err=True)
    else:
        print_output(text)


def print_output(output: str | bytes) -> None:
    """Print a line, or several, or encoded JSON on stdout, whatever is drawn on the terminal.

    Raises:
        typer.Exit: with status 1 and a line on stderr, if stdout cannot be written.
        BrokenPipeError: a reader such as `head` closed the pipe; typer then ends the command quietly.
    """
    try:
        typer.echo(output)
    except BrokenPipeError:
        raise
    except OSError as error:
        with Path(os.devnull).open("wb") as nowhere:  # what is left in the buffer would fail again when Python ends
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        print_error(f"cannot print the result: {error.strerror}")
        raise typer.Exit(1) from None


def text_column(header: str, max_width: int | None = None) -> Column:
    """A left-aligned column; text beyond `max_width` characters is cut off."""
    from rich.table import Column

    if max_width is None:
        return Column(header, overflow="fold")
    return Column(header, max_width=max_width, no_wrap=True)


def number_column(header: str) -> Column:
    """A right-aligned column."""
    from rich.table import Column

    return Column(header, justify="right")


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, title: str = "", wrap: bool = False
) -> None:
    """Print a table on stdout, one line per row, under a line with the title if there is one.

    With `wrap`, and on a terminal, long cells take several lines instead.
    """
    from rich.console import Console
    from rich.table import Table

    width = None if wrap and sys.stdout.isatty() else MAX_LINE_WIDTH
    # Names and labels are no markup.
    # rich writes to the file, if only nothing, although it captures; styles and width are those of a terminal.
    file = sys.stdout if sys.stdout.isatty() else io.StringIO()
    console = Console(file=file, width=width, markup=False, emoji=False, highlight=False)
    has_header = any(column.header for column in columns)
    table = Table(*columns, box=None, pad_edge=False, header_style="dim", show_header=has_header)
    for row in rows:
        table.add_row(*map(printable, row))
    with console.capture() as capture:
        if title:
            console.print(printable(title), style="bold")
        console.print(table)
    # Cells are padded to the width of their column; a line needs no padding at its end.
    print_line("\n".join(line.rstrip() for line in capture.get().splitlines()))


@contextmanager
def image_progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar with rate and time left on stderr, which disappears at the end; yields what advances it by one image.

    There is no bar for a single image, nor where stderr is no terminal. Results that are printed on the same terminal
    as they arrive move up above the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f}/s")

    console = Console(file=sys.stderr)
    if total < 2 or not console.is_terminal:
        yield lambda: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    global _bar
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task("", total=total)
        _bar = bar
        try:
            yield lambda: bar.advance(task)
        finally:
            _bar = None


@contextmanager
def waiting(message: str) -> Iterator[None]:
    """Shows on stderr what the command waits for: with the time on a terminal, else as one line."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        print_error(message)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as display:
        display.add_task(_escaped(message), total=None)
        yield


class DownloadProgress(Protocol):
    def progress(self, done: int, total: int | None) -> None:
        """`done` bytes are on disk, of `total` if that is known."""
        ...

    def notice(self, message: str) -> None:
        """Something delays the download."""
        ...


@contextmanager
def download_progress(name: str) -> Iterator[DownloadProgress]:
    """Progress of downloading the file `name`, on stderr: a bar on a terminal, about ten lines elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _DownloadLines(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        yield _DownloadBar(bar, name)


class _DownloadBar:
    def __init__(self, bar: Progress, name: str) -> None:
        self._bar = bar
        self._task = bar.add_task(_escaped(name), total=None)

    def progress(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def notice(self, message: str) -> None:
        self._bar.console.print(_escaped(f"convmlp: {message}"), highlight=False)


class _DownloadLines:
    """A line per STEP_PERCENT where the size is known, else none."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_percent = STEP_PERCENT

    def progress(self, done: int, total: int | None) -> None:
        percent = 100 * done // total if total else 0
        if percent >= self._next_percent and total:
            self._next_percent = percent - percent % STEP_PERCENT + STEP_PERCENT
            print_error(f"{self._name}: {percent} % of {total / 1e6:.1f} MB")

    def notice(self, message: str) -> None:
        print_error(message)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(printable(text))
