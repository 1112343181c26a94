"""The image files that a command names, and the files that `--save` writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from convmlp_client.images import ImageUrl
from model.errors import ImageTooLarge, ImageUndecodable
from service.cli.console import printable
from service.frontend.core.overlay import PictureFormat

MAX_READ_BYTES = 256 * 2**20
"""More than any service accepts. The bound is for endless input, such as a pipe."""

FORMATS = {
    ".png": PictureFormat.PNG,
    ".jpg": PictureFormat.JPEG,
    ".jpeg": PictureFormat.JPEG,
    ".webp": PictureFormat.WEBP,
}


SUFFIXES = frozenset({*FORMATS, ".avif", ".bmp", ".gif", ".heic", ".heif", ".tif", ".tiff"})
"""Of the images in a folder."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image as the user names it: a path, an http or https URL that the service fetches, or `-` for stdin."""

    path: str

    @property
    def name(self) -> str:
        return "stdin" if self.path == "-" else self.path

    @property
    def is_url(self) -> bool:
        return self.path.lower().startswith(("http://", "https://"))

    def read(self) -> bytes:
        """The encoded bytes, or the URL.

        Raises:
            ImageUndecodable: the file cannot be read.
            ImageTooLarge: it has more than MAX_READ_BYTES.
        """
        if self.is_url:
            return ImageUrl(self.path)
        try:
            if self.path == "-":
                data = sys.stdin.buffer.read(MAX_READ_BYTES + 1)
            else:
                with Path(self.path).open("rb") as file:
                    data = file.read(MAX_READ_BYTES + 1)
        except OSError as error:
            raise ImageUndecodable(f"cannot be read: {error.strerror}") from error
        if len(data) > MAX_READ_BYTES:
            raise ImageTooLarge(f"has more than {MAX_READ_BYTES:,} bytes; send a smaller file")
        return data


def image_files(paths: Sequence[str]) -> list[ImageFile]:
    """The named files, and of a named folder all files below it whose suffix is that of an image, sorted by path.

    Raises:
        typer.BadParameter: a folder has none.
    """
    files: list[ImageFile] = []
    for path in paths:
        if not Path(path).is_dir():
            files.append(ImageFile(path))
            continue
        below = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not below:
            raise typer.BadParameter(f"the folder {printable(path)} has no images ({', '.join(sorted(SUFFIXES))})")
        files += [ImageFile(str(file)) for file in below]
    return files


def output_paths(save: str, images: Sequence[ImageFile]) -> list[Path]:
    """Where each drawing is written: `save` itself, or a PNG file per image if `save` is a folder.

    A folder is an existing one, or a name that ends with a slash.

    Raises:
        typer.BadParameter: several images and no folder, an unknown suffix, two drawings with one name, or a drawing
            that would overwrite an image.
    """
    path = Path(save)
    if save.endswith("/") or path.is_dir():
        paths = [path / f"{Path(image.name).stem}.png" for image in images]
    elif len(images) > 1:
        raise typer.BadParameter(
            f"--save {printable(save)} is one file for {len(images)} images; name a folder (a new one ends with /)"
        )
    elif path.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"--save {printable(save)} does not end with one of {', '.join(FORMATS)}")
    else:
        paths = [path]
    taken = {Path(image.path).resolve() for image in images}
    for target in paths:
        if target.resolve() in taken:
            raise typer.BadParameter(
                f"--save would overwrite {printable(str(target))}, an image or another drawing; choose another place"
            )
        taken.add(target.resolve())
    return paths
