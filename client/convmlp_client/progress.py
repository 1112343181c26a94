"""A progress bar, where one is asked for; drawn by rich, which is the extra `progress`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager


@contextmanager
def progress_bar(shown: bool, images: object) -> Iterator[Callable[[], None]]:
    """A bar on stderr, of as many steps as there are images, where that is known. Call what it gives once a step.

    Raises:
        ImportError: rich is not installed.
    """
    if not shown:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError as error:
        raise ImportError(
            f"progress=True needs {error.name}, which is not installed: pip install 'convmlp-client[progress]'"
        ) from error
    total = len(images) if isinstance(images, Sized) else None
    columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("images", total=total)
        yield lambda: progress.advance(task)
