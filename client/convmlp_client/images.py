"""What a caller may give as a picture: the bytes that are sent, and the pixels that answers speak of.

A picture is what a viewer shows. So a PIL image with an EXIF orientation is turned upright before it is sent, as the
server does it with files: a path, its bytes and `PIL.Image.open(path)` have one answer, in one coordinate frame.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

ImageInput = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | PIL.Image.Image | npt.NDArray[np.uint8]
)
"""A path, an encoded picture (JPEG, PNG, WebP, BMP or GIF) as bytes or as an open binary file, read from where it
stands, a PIL image, or pixels: uint8 (H, W, 3) in RGB order or (H, W) grey, upright."""

MAX_FILE_BYTES: Final = 256 * 2**20
CHUNK_BYTES: Final = 2**20
"""More than any service takes: the bound is for what has no end, such as a pipe."""

EXPECTED: Final = (
    "a path, bytes, a binary file, a PIL image, or a NumPy array: uint8, (height, width, 3) in RGB order or "
    "(height, width) grey"
)
URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
PNG_MODES: Final = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
"""What PNG holds without a loss and the server reads as meant."""
WITH_ALPHA: Final = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
"""Modes with transparency that PNG does not have, and what they are told as. All other modes become RGB."""


def encoded_image(image: ImageInput) -> bytes:
    """The bytes to send: files and bytes as they are, pixels as PNG, without a loss.

    Reads a file or compresses pixels, so an event loop is better served by a thread.

    Raises:
        TypeError: it is nothing that a picture is read from.
        ValueError: it is a URL, has more than 256 MiB, or is an array of another dtype or shape, or a PIL image
            whose samples are no 8-bit or 16-bit ones.
        OSError: the file cannot be read.
    """
    match image:
        case bytes():
            return image
        case bytearray() | memoryview():
            return bytes(image)
        case PIL.Image.Image():
            return _png(_from_pil(image))
        case np.ndarray():
            return _png(_from_array(image))
        case str() | os.PathLike():
            return _read_path(image)
    if hasattr(image, "read"):
        return _bounded(image, "the file")
    raise TypeError(f"a picture cannot be read from {type(image).__name__}; give {EXPECTED}")


def opened_image(image: ImageInput) -> PIL.Image.Image:
    """The pixels that an answer's coordinates speak of: a new RGB picture, upright, transparent parts on white.

    Raises:
        TypeError, ValueError, OSError: as `encoded_image`; `PIL.UnidentifiedImageError`, an OSError, where the
            bytes are no picture.
    """
    if isinstance(image, np.ndarray):
        return _rgb(_from_array(image))
    if isinstance(image, PIL.Image.Image):
        return _rgb(_from_pil(image))
    with PIL.Image.open(io.BytesIO(encoded_image(image))) as file:
        return _rgb(PIL.ImageOps.exif_transpose(file))


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith("I"):  # 16 bit, as PNG files have them
        # Pillow's own conversion clips at 255; the server keeps the high byte as well.
        return PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        on_white = PIL.Image.new("RGB", rgba.size, (255, 255, 255))
        on_white.paste(rgba, mask=rgba)
        return on_white
    return picture.convert("RGB")


def _png(picture: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    # The fastest level: what is sent over a good network should not wait for a compressor.
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _from_pil(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode in ("F", "I"):
        raise ValueError(
            f"a PIL image of mode {picture.mode} does not say which value is white; convert it to 8 bit yourself"
        )
    upright = PIL.ImageOps.exif_transpose(picture)
    return upright if upright.mode in PNG_MODES else upright.convert(WITH_ALPHA.get(upright.mode, "RGB"))


def _from_array(array: npt.NDArray[np.uint8]) -> PIL.Image.Image:
    if array.dtype != np.uint8:
        hint = "; multiply what lies in 0 to 1 by 255 and round" if array.dtype.kind == "f" else ""
        raise ValueError(f"the array has dtype {array.dtype}, expected uint8{hint}")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        hint = ""
        if array.ndim == 4:
            hint = "; give the pictures of a batch one by one"
        elif array.ndim == 3 and array.shape[0] in (1, 3):
            hint = "; move the channels to the end: array.transpose(1, 2, 0)"
        elif array.ndim == 3 and array.shape[2] == 4:
            hint = "; leave the fourth channel out: array[..., :3]"
        raise ValueError(
            f"the array has shape {array.shape}, expected (height, width, 3) in RGB order or (height, width) grey{hint}"
        )
    if not array.size:
        raise ValueError(f"the array has shape {array.shape}: there is no pixel in it")
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _read_path(path: str | os.PathLike[str]) -> bytes:
    if isinstance(path, str) and URL.match(path):
        raise ValueError(
            f"{path[:80]!r} is a URL, and pictures are not fetched from the web; download it, then give its bytes"
        )
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise _too_long(str(path))
        return file.read()


def _bounded(file: IO[bytes], name: str) -> bytes:
    parts = []
    total = 0
    while data := file.read(CHUNK_BYTES):  # a whole read would make room for the bound, however short the file
        if not isinstance(data, bytes):
            raise TypeError(f"{name} gives {type(data).__name__}, expected bytes; open it with mode 'rb'")
        parts.append(data)
        total += len(data)
        if total > MAX_FILE_BYTES:
            raise _too_long(name)
    return b"".join(parts)


def _too_long(name: str) -> ValueError:
    return ValueError(f"{name} has more than {MAX_FILE_BYTES:,} bytes; send a smaller one")
