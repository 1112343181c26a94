"""How many pictures are done: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn


@contextmanager
def told_progress(total: int, *, printing: bool) -> Iterator[Callable[[], None]]:
    """A function to call for each picture that is done with; the bar that it moves is gone in the end.

    There is none for a single picture, nor where stderr is no terminal. With `printing` answers go to stdout as they
    come: on a terminal they show the progress themselves, and a bar would be written through them.
    """
    console = Console(file=sys.stderr)
    if total < 2 or not console.is_terminal or (printing and sys.stdout.isatty()):
        yield lambda: None
        return
    # What is printed meanwhile belongs to stdout, not to the terminal that has the bar.
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=True, redirect_stdout=False
    )
    with bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
