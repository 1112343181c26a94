"""Tables on stdout: for people, yet one row a line, so that a pipe can do something with them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from rich.console import Console
from rich.table import Column, Table

from service.cli.words import plain

WIDEST = 1000
"""Characters of a line that is not wrapped; a table takes no more than it needs."""


def left(header: str, max_width: int | None = None) -> Column:
    """A column of words, cut off beyond `max_width`."""
    if max_width is None:
        return Column(header, overflow="fold")
    return Column(header, max_width=max_width, no_wrap=True)


def right(header: str) -> Column:
    """A column of numbers."""
    return Column(header, justify="right")


def print_rows(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, title: str = "", wrap: bool = False
) -> None:
    """A line with the title if there is one, then the table; with `wrap` made to fit the terminal, if it is one."""
    terminal = sys.stdout.isatty()
    width = None if wrap and terminal else WIDEST
    # Neither names nor labels are markup.
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    headed = any(column.header for column in columns)
    table = Table(*columns, box=None, pad_edge=False, header_style="dim", show_header=headed)
    for row in rows:
        table.add_row(*map(plain, row))
    with console.capture() as capture:
        if title:
            console.print(plain(title), style="bold")
        console.print(table)
    # Cells are padded to the width of their column, which no reader has a use for.
    typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))
