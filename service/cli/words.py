"""What the command line says on stderr, and how foreign text is made fit for a terminal."""

from __future__ import annotations

from typing import Any

import typer
from pydantic import ValidationError

from service.settings import Settings


def plain(text: str) -> str:
    """`text` without what could steer a terminal or cannot be written: file names and labels may hold anything."""
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in text)


def complain(words: str) -> None:
    typer.echo(f"convmlp: {plain(words)}", err=True)


def settings_or_exit(**given: Any) -> Settings:  # noqa: ANN401  (any setting's own type)
    """The settings with what the command line gave; without None, which stands for nothing given.

    Raises:
        typer.Exit: with status 2, after saying which setting is wrong.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(map(str, problem["loc"]))
            complain(f"setting {name}: {problem['msg']} (given: {problem['input']!r})")
        raise typer.Exit(2) from None
