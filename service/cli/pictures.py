"""The pictures that a command names, and the files that their drawings go to."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from model.errors import ImageTooLarge, ImageUndecodable
from service.cli.words import plain
from service.frontend.core.overlay import PictureFormat

MAX_READ_BYTES = 256 * 2**20
"""More than any service takes: the bound is for what has no end, such as a pipe."""

FORMATS = {
    ".png": PictureFormat.PNG,
    ".jpg": PictureFormat.JPEG,
    ".jpeg": PictureFormat.JPEG,
    ".webp": PictureFormat.WEBP,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture by the name that the caller gave: a path, or `-` for stdin."""

    given: str

    @property
    def name(self) -> str:
        return "stdin" if self.given == "-" else self.given

    def read(self) -> bytes:
        """Its encoded bytes.

        Raises:
            ImageUndecodable: it cannot be read.
            ImageTooLarge: it has no end in sight.
        """
        try:
            if self.given == "-":
                data = sys.stdin.buffer.read(MAX_READ_BYTES + 1)
            else:
                with Path(self.given).open("rb") as file:
                    data = file.read(MAX_READ_BYTES + 1)
        except OSError as error:
            raise ImageUndecodable(f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_READ_BYTES:
            raise ImageTooLarge(f"has more than {MAX_READ_BYTES:,} bytes; send a smaller file")
        return data


def output_paths(save: str, pictures: Sequence[Picture]) -> list[Path]:
    """Where each picture's drawing goes: `save` itself, or PNG files in it where it is a folder.

    A folder is an existing one, or a name that ends with a slash.

    Raises:
        typer.BadParameter: several pictures and no folder, an unknown suffix, two drawings of one name, or one
            that would overwrite a picture.
    """
    path = Path(save)
    if save.endswith("/") or path.is_dir():
        paths = [path / f"{Path(picture.name).stem}.png" for picture in pictures]
    elif len(pictures) > 1:
        raise typer.BadParameter(
            f"--save {plain(save)} is one file for {len(pictures)} images; name a folder, a new one with / at its end"
        )
    elif path.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"--save {plain(save)} does not end with one of {', '.join(FORMATS)}")
    else:
        paths = [path]
    taken = {Path(picture.given).resolve() for picture in pictures}
    for target in paths:
        if target.resolve() in taken:
            raise typer.BadParameter(
                f"--save would overwrite {plain(str(target))}, an image or another drawing; choose another place"
            )
        taken.add(target.resolve())
    return paths
