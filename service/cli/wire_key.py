"""`convmlp wire-key`: the key file of the wire between front-ends and workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.cli.console import print_error
from service.wire.curve import make_key_file


def wire_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write. It must not exist.")],
) -> None:
    """Make the key file that protects the wire between front-ends and workers on several hosts."""
    try:
        make_key_file(file)
    except OSError as error:
        print_error(f"cannot write {file}: {error.strerror}")
        raise typer.Exit(1) from None
