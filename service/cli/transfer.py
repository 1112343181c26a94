"""How far a download is: a bar on a terminal, a line now and then where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from service.cli.words import complain, plain

STEP_PERCENT = 10


class Transfer(Protocol):
    def progress(self, done: int, total: int | None) -> None:
        """`done` bytes are at hand, of `total` where that is known."""
        ...

    def notice(self, words: str) -> None:
        """Something that delays it."""
        ...


@contextmanager
def told_transfer(name: str) -> Iterator[Transfer]:
    """Tell on stderr of what is being fetched."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _Lines(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        yield _Bar(bar, name)


class _Bar:
    def __init__(self, bar: Progress, name: str) -> None:
        self._bar = bar
        self._task = bar.add_task(escape(plain(name)), total=None)

    def progress(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def notice(self, words: str) -> None:
        self._bar.console.print(escape(plain(f"convmlp: {words}")), highlight=False)


class _Lines:
    """Some ten lines in all where the size is known, else none until the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_percent = STEP_PERCENT

    def progress(self, done: int, total: int | None) -> None:
        percent = 100 * done // total if total else 0
        if percent >= self._next_percent and total:
            self._next_percent = percent - percent % STEP_PERCENT + STEP_PERCENT
            complain(f"{self._name}: {percent} % of {total / 1e6:.1f} MB")

    def notice(self, words: str) -> None:
        complain(words)
