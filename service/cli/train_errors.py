"""How `convmlp train …` ends where it cannot train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from model.errors import ConvMLPError
from service.cli.console import print_error


def refuse(message: str) -> NoReturn:
    """Print an error message, and exit with status 2."""
    print_error(message)
    raise typer.Exit(2)


@contextmanager
def train_errors_to_exit() -> Iterator[None]:
    """Turns errors of data, bundles or weights into a message and exit status 1."""
    try:
        yield
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        extra = "train" if error.name == "cv2" else "worker"
        print_error(f"training needs {error.name}, which is not installed; install this package's extra `{extra}`")
        raise typer.Exit(1) from None
    except (OSError, ValueError, FloatingPointError) as error:
        print_error(str(error))
        raise typer.Exit(1) from None
