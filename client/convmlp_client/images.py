"""Input images: their encoded bytes for the service, and their pixels for drawing.

The service applies the EXIF orientation of files. This module applies it to PIL images. So a path, its bytes and
`PIL.Image.open(path)` give the same result, in the same coordinate frame.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path
from typing import IO, Final, Self

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

ImageInput = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | PIL.Image.Image | npt.NDArray[np.uint8]
)
"""A path, encoded bytes (JPEG, PNG, WebP, BMP, GIF, AVIF, HEIC or TIFF), an open binary file (read from its current
position), a PIL image, or an array of pixels: uint8, upright, (H, W, 3) in RGB order or (H, W) grey. An `ImageUrl` is
bytes, too: the service fetches that image."""

MAX_FILE_BYTES: Final = 256 * 2**20
"""More than any service accepts. The limit is for files without an end, such as pipes."""
CHUNK_BYTES: Final = 2**20

EXPECTED: Final = (
    "a path, bytes, a binary file, a PIL image, or a NumPy array: uint8, (height, width, 3) in RGB order or "
    "(height, width) grey"
)
URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
PNG_MODES: Final = frozenset({"1", "L", "LA", "I;16", "P", "RGB", "RGBA"})
"""The modes of Pillow that PNG stores without loss."""
ALPHA_CONVERSIONS: Final = {"La": "LA", "PA": "RGBA", "RGBa": "RGBA"}
"""The conversion of modes with transparency that PNG cannot store. All other modes are converted to RGB."""


class ImageUrl(bytes):
    """The http or https URL of an image, in an image's place: the service fetches it, if its operator allows the host.

    `ImageUrl("https://pictures.example.org/cat.jpg")`. To draw a result, load the image yourself.
    """

    def __new__(cls, url: str) -> Self:
        """Raises ValueError: `url` is not one of http or https."""
        if not re.match(r"https?://", url, re.IGNORECASE):
            raise ValueError(f"{url[:80]!r} is not the URL of an image; expected https://HOST/PATH")
        return super().__new__(cls, url, "utf-8")


def encoded_image(image: ImageInput) -> bytes:
    """The bytes to send: files and bytes unchanged, PIL images and arrays as PNG without loss.

    This reads a file or compresses pixels, so call it from a thread rather than from an event loop.

    Raises:
        TypeError: `image` is of another type than `ImageInput`.
        ValueError: `image` is a URL, is larger than 256 MiB, is an array of another dtype or shape, or is a PIL image
            with 32-bit or float samples.
        OSError: the file cannot be read.
    """
    match image:
        case bytes():
            return image
        case bytearray() | memoryview():
            return bytes(image)
        case PIL.Image.Image():
            return _encode_png(_from_pil(image))
        case np.ndarray():
            return _encode_png(_from_array(image))
        case str() | os.PathLike():
            return _read_path(image)
    if hasattr(image, "read"):
        return _read_bounded(image, "the file")
    raise TypeError(f"the image has type {type(image).__name__}, expected {EXPECTED}")


def opened_image(image: ImageInput) -> PIL.Image.Image:
    """The pixels in the coordinate frame of the results: a new upright RGB image. Transparent pixels become white.

    Raises:
        TypeError, ValueError, OSError: as `encoded_image`. Bytes that are not an image raise
            `PIL.UnidentifiedImageError`, an OSError; so do those of a HEIC where the extra `heif` is not installed.
    """
    if isinstance(image, np.ndarray):
        return _rgb(_from_array(image))
    if isinstance(image, PIL.Image.Image):
        return _rgb(_from_pil(image))
    if isinstance(image, ImageUrl):
        raise ValueError("the image is a URL, which this client does not download; download it and pass its bytes")
    encoded = encoded_image(image)
    if encoded[4:8] == b"ftyp":
        _register_heic()
    with PIL.Image.open(io.BytesIO(encoded)) as file:
        return _rgb(PIL.ImageOps.exif_transpose(file))


def _register_heic() -> None:
    """Make Pillow read HEIC, where the extra `heif` is installed."""
    with contextlib.suppress(ImportError):
        import pi_heif

        pi_heif.register_heif_opener()


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith("I"):  # 16 bit per sample, from a PNG file
        # Pillow's own conversion clips at 255. The service keeps the high byte, so this does too.
        return PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        on_white = PIL.Image.new("RGB", rgba.size, (255, 255, 255))
        on_white.paste(rgba, mask=rgba)
        return on_white
    return picture.convert("RGB")


def _encode_png(picture: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    # The fastest level: on a fast network, stronger compression takes longer than it saves.
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _from_pil(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode in ("F", "I"):
        raise ValueError(
            f"the PIL image has mode {picture.mode}, whose value of white is unknown; convert it to 8 bit first"
        )
    upright = PIL.ImageOps.exif_transpose(picture)
    return upright if upright.mode in PNG_MODES else upright.convert(ALPHA_CONVERSIONS.get(upright.mode, "RGB"))


def _from_array(array: npt.NDArray[np.uint8]) -> PIL.Image.Image:
    if array.dtype != np.uint8:
        hint = "; multiply values from 0 to 1 by 255 and round" if array.dtype.kind == "f" else ""
        raise ValueError(f"the array has dtype {array.dtype}, expected uint8{hint}")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] == 3):
        hint = ""
        if array.ndim == 4:
            hint = "; pass the images of a batch one by one"
        elif array.ndim == 3 and array.shape[0] in (1, 3):
            hint = "; move the channels to the end: array.transpose(1, 2, 0)"
        elif array.ndim == 3 and array.shape[2] == 4:
            hint = "; remove the fourth channel: array[..., :3]"
        raise ValueError(
            f"the array has shape {array.shape}, expected (height, width, 3) in RGB order or (height, width) grey{hint}"
        )
    if not array.size:
        raise ValueError(f"the array has shape {array.shape}, expected at least one pixel")
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _read_path(path: str | os.PathLike[str]) -> bytes:
    if isinstance(path, str) and URL.match(path):
        raise ValueError(
            f"{path[:80]!r} is a URL, which is not downloaded; download the image first and pass its bytes, "
            "or pass ImageUrl(…) to a service that fetches URLs"
        )
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise _too_large(str(path))
        return file.read()


def _read_bounded(file: IO[bytes], name: str) -> bytes:
    parts = []
    total = 0
    while data := file.read(CHUNK_BYTES):  # in chunks: read(MAX_FILE_BYTES) allocates that much, however short the file
        if not isinstance(data, bytes):
            raise TypeError(f"{name} returns {type(data).__name__}, expected bytes; open it with mode 'rb'")
        parts.append(data)
        total += len(data)
        if total > MAX_FILE_BYTES:
            raise _too_large(name)
    return b"".join(parts)


def _too_large(name: str) -> ValueError:
    return ValueError(f"{name} has more than {MAX_FILE_BYTES:,} bytes; send a smaller image")
