"""The images that a command names, and the files that `--save` writes."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import typer

from model.errors import ImageTooLarge, ImageUndecodable
from service.cli.console import printable
from service.frontend.core.overlay import PictureFormat

MAX_READ_BYTES = 256 * 2**20
"""More than any service accepts. The bound is for endless input, such as a pipe."""

MAX_IMAGES = 1_000_000
"""Of one command."""

FORMATS = {
    ".png": PictureFormat.PNG,
    ".jpg": PictureFormat.JPEG,
    ".jpeg": PictureFormat.JPEG,
    ".webp": PictureFormat.WEBP,
}

OTHER_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")
"""Names that begin so are no files, unless one exists."""

SUFFIXES = frozenset({*FORMATS, ".avif", ".bmp", ".gif", ".heic", ".heif", ".tif", ".tiff"})
"""Of the images in a folder."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image as the user names it: a path, an http or https URL, or `-` for stdin."""

    path: str

    @property
    def name(self) -> str:
        return "stdin" if self.path == "-" else self.path

    @property
    def is_url(self) -> bool:
        return _is_url(self.path)

    def read(self) -> bytes:
        """The encoded bytes of a file or of stdin; `ImageReader` reads URLs as well.

        Raises:
            ImageUndecodable: the file cannot be read.
            ImageTooLarge: it has more than MAX_READ_BYTES.
        """
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
    """The named images, in their order; a folder or a pattern stands for its pictures, sorted by path.

    Of a folder these are all files below it whose suffix is that of an image, but hidden ones. A pattern is one of
    `glob` that names no file itself, as a quoted `'photos/**/*.jpg'`; of what it matches, files with other suffixes are
    left out.

    Raises:
        typer.BadParameter: a folder or a pattern has none, a URL is of another scheme than http and https, stdin is
            named twice, or there are more than MAX_IMAGES.
    """
    if paths.count("-") > 1:
        raise typer.BadParameter("- is stdin, which can be read only once")
    files: list[ImageFile] = []
    for path in paths:
        if OTHER_URL.match(path) and not _is_url(path) and not Path(path).exists():
            raise typer.BadParameter(
                f"{printable(path)} cannot be read: only http:// and https:// URLs are downloaded; name a file of this "
                "machine by its path"
            )
        if Path(path).is_dir():
            found, where = _pictures(_visible(Path(path))), "the folder"
        elif glob.has_magic(path) and not _is_url(path) and not Path(path).exists():
            found, where = _pictures(map(Path, glob.iglob(path, recursive=True))), "the pattern"  # noqa: PTH207
        else:
            files.append(ImageFile(path))
            continue
        if not found:
            raise typer.BadParameter(f"{where} {printable(path)} has no images ({', '.join(sorted(SUFFIXES))})")
        files += found
    if len(files) > MAX_IMAGES:
        raise typer.BadParameter(f"there are more than {MAX_IMAGES:,} images; name a part of them")
    return files


def _visible(folder: Path) -> Iterator[Path]:
    """All below a folder but what is hidden, such as the previews that systems put beside pictures."""
    for path in folder.rglob("*"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _pictures(found: Iterable[Path]) -> list[ImageFile]:
    """The files with an image's suffix, sorted. Raises typer.BadParameter where there are more than MAX_IMAGES."""
    files: list[Path] = []
    for path in found:
        if path.suffix.lower() in SUFFIXES and path.is_file():
            files.append(path)
            if len(files) > MAX_IMAGES:
                raise typer.BadParameter(f"there are more than {MAX_IMAGES:,} images; name a part of them")
    return [ImageFile(str(file)) for file in sorted(files)]


def _is_url(path: str) -> bool:
    return path.lower().startswith(("http://", "https://"))


def _stem(image: ImageFile) -> str:
    if not image.is_url:
        return Path(image.name).stem
    return PurePosixPath(urlsplit(image.path).path).stem or "picture"


def output_paths(save: str, images: Sequence[ImageFile]) -> list[Path]:
    """Where each drawing is written: `save` itself, or a PNG file per image if `save` is a folder.

    A folder is an existing one, or a name that ends with a slash.

    Raises:
        typer.BadParameter: several images and no folder, an unknown suffix, two drawings with one name, or a drawing
            that would overwrite an image.
    """
    path = Path(save)
    if save.endswith("/") or path.is_dir():
        paths = [path / f"{_stem(image)}.png" for image in images]
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
