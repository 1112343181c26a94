"""Decoded pixels → upright RGB, with few copies: a large picture takes at most six bytes a pixel at any time.

Pillow stores a pixel of RGB, RGBA or CMYK in four bytes. Its memory is exported as an Arrow array, so NumPy and C
read and write it in place. Conversions run in strips: a converted strip overwrites the one that it was made of.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image

from model.resize import copy_pixels
from model.types import Reader, Size, UInt8Array

STRIP_PIXELS = 1 << 18
FLIPPED_PIXELS = 1 << 15
"""Are flipped in place at a time, by a copy in a core's cache."""
RELEASED_BYTES = 2 << 20
"""Memory is released in multiples of a huge page: the kernel keeps the rest of one whose part is released."""
WHITE = (255, 255, 255)
PIXEL_BYTES = 4
"""Of Pillow's modes with several channels."""

SIDEWAYS = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""
MIRRORED, UPSIDE_DOWN = frozenset({2, 3, 6, 7}), frozenset({3, 4, 7, 8})
"""EXIF orientations that are made upright by reversing rows, or columns; sideways ones after transposition."""

# So large that Pillow stores every picture that is accepted in one block, as its Arrow export needs. It allocates what
# the picture takes. Large blocks are mapped, and unmapped with the picture.
PIL.Image.core.set_block_size((1 << 31) - (1 << 20))  # type: ignore[attr-defined]


class _ArrowArray(ctypes.Structure):
    """The beginning of https://arrow.apache.org/docs/format/CDataInterface.html."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]

_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

_madvise = getattr(ctypes.CDLL(None), "madvise", None)
if _madvise is not None:
    _madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_MADV_DONTNEED = 4


class _Exported:
    """An image's memory, for NumPy. It lives as long as the array."""

    def __init__(self, image: PIL.Image.Image) -> None:
        self._capsules = image.__arrow_c_array__()
        array = _ArrowArray.from_address(_pointer_of(self._capsules[1], b"arrow_array"))
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (image.height, image.width, PIXEL_BYTES),
            "data": (array.children[0].contents.buffers[1], False),
        }


def pillow_pixels(image: PIL.Image.Image) -> UInt8Array:
    """An image's memory: uint8 (H, W, 4), writable, not copied. The mode has several channels of 8 bits.

    Raises:
        ValueError: more than 2 GiB.
    """
    return np.asarray(_Exported(image))


def as_array(source: PIL.Image.Image | UInt8Array) -> UInt8Array:
    """The pixels of Pillow's image in mode RGB, or of an array: uint8 (H, W, 3 or 4), not copied."""
    return source if isinstance(source, np.ndarray) else pillow_pixels(source)


def upright_size(size: Size, orientation: int) -> Size:
    """A stored size → the upright one, or back."""
    return Size(size.width, size.height) if orientation in SIDEWAYS else size


def upright_rgb(decoded: PIL.Image.Image | UInt8Array, orientation: int) -> UInt8Array:
    """The upright picture, uint8 (H, W, 3 or 4): RGB, and a fourth channel without meaning. It may be `decoded` itself.

    `decoded` is an image of Pillow in any mode, or such an array. Transparency is composited on white. Samples of 16
    bits keep their high byte. `orientation` is EXIF's, 1 to 8.
    """
    pixels = decoded if isinstance(decoded, np.ndarray) else pillow_to_rgb(decoded)
    if orientation not in SIDEWAYS:
        _flip(pixels, orientation)
        return pixels
    stored = packed(pixels)
    upright = np.empty((stored.shape[1], stored.shape[0], 3), np.uint8)
    copy_pixels(stored, _reversed(upright, orientation).transpose(1, 0, 2))
    return upright


def _flip(pixels: UInt8Array, orientation: int) -> None:
    """Make a picture upright in place, which is not sideways."""
    height, width, channels = pixels.shape
    # Four channels are one number, which NumPy moves at once.
    units: Any = pixels if channels == 3 else pixels.view(np.uint32)
    copy: Callable[[Any, Any], None] = copy_pixels if channels == 3 else _copy_units
    rows = max(FLIPPED_PIXELS // width, 1)
    if orientation in UPSIDE_DOWN:
        # With an odd height the row in the middle belongs to both halves.
        half = (height + 1) // 2
        for top in range(0, half, rows):
            bottom = min(top + rows, half)
            upper, lower = units[top:bottom], units[height - bottom : height - top]
            above, below = upper.copy(), lower.copy()
            copy(below, _reversed(upper, orientation))
            copy(above, _reversed(lower, orientation))
    elif orientation in MIRRORED:
        for top in range(0, height, rows):
            part = units[top : top + rows]
            copy(part.copy(), _reversed(part, orientation))


def _reversed(pixels: Any, orientation: int) -> Any:  # noqa: ANN401  (of any dtype)
    if orientation in MIRRORED:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in UPSIDE_DOWN else pixels


def _copy_units(source: Any, out: Any) -> None:  # noqa: ANN401
    out[:] = source


def packed(pixels: UInt8Array) -> UInt8Array:
    """The first three of four channels: uint8 (H, W, 3), contiguous. The memory of `pixels` is released meanwhile.

    Three channels are returned as they are.
    """
    height, width, channels = pixels.shape
    if channels == 3:
        return pixels
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        copy_pixels(pixels[top : top + rows], rgb[top : top + rows])
        _release(pixels[: top + rows])
    return rgb


def _release(pixels: UInt8Array) -> None:
    """Give memory back to the system. Its content is lost; what else lies in its pages is kept."""
    start = -(-pixels.ctypes.data // RELEASED_BYTES) * RELEASED_BYTES
    end = (pixels.ctypes.data + pixels.nbytes) // RELEASED_BYTES * RELEASED_BYTES
    if _madvise is not None and end > start:
        _madvise(start, end - start, _MADV_DONTNEED)


def pillow_to_rgb(image: PIL.Image.Image) -> UInt8Array:
    """An image in any mode, on white: uint8 (H, W, 4), RGB and a channel without meaning. It may be in its memory."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return pillow_pixels(image)
    in_place = image.mode in ("RGB", "RGBA", "CMYK", "LA", "PA")
    pixels = pillow_pixels(image if in_place else PIL.Image.new("RGB", image.size))
    for left, top, right, bottom in boxes(image.width, image.height):
        part = _strip_to_rgb(image.crop((left, top, right, bottom)))
        pixels[top:bottom, left:right] = pillow_pixels(part)
    return pixels


def _strip_to_rgb(strip: PIL.Image.Image) -> PIL.Image.Image:
    if strip.mode == "I;16":
        # Pillow's own conversion clips at 255. The high byte is also what its parsers keep of 16-bit colour.
        samples = np.asarray(strip)
        high = (samples >> 8).astype(np.uint8)
        transparent = strip.info.get("transparency")
        if transparent is not None:
            high[samples == transparent] = 255
        return PIL.Image.fromarray(high).convert("RGB")
    if strip.has_transparency_data:
        rgba = strip.convert("RGBA")
        on_white = PIL.Image.new("RGB", strip.size, WHITE)
        on_white.paste(rgba, mask=rgba)
        return on_white
    return strip if strip.mode == "RGB" else strip.convert("RGB")


def cmyk_to_rgb(pixels: UInt8Array, reader: Reader) -> UInt8Array:
    """CMYK, inverted as JPEG stores it, to RGB as `reader` converts it, in place: uint8 (H, W, 4), the fourth channel
    without meaning."""
    height, width = pixels.shape[:2]
    for left, top, right, bottom in boxes(width, height):
        part = pixels[top:bottom, left:right]
        if reader is Reader.OPENCV:
            light = part[:, :, 3:].astype(np.uint16)
            part[:, :, :3] = light - ((255 - part[:, :, :3]) * light >> 8)
        else:
            part[:] = pillow_pixels(PIL.Image.fromarray(255 - part, "CMYK").convert("RGB"))
    return pixels


def composite_on_white(pixels: UInt8Array) -> UInt8Array:
    """RGBA on white, in place: uint8 (H, W, 4), the fourth channel without meaning."""
    height, width = pixels.shape[:2]
    for left, top, right, bottom in boxes(width, height):
        part = pixels[top:bottom, left:right]
        part[:] = rgba_on_white(part)
    return pixels


def rgba_on_white(rgba: UInt8Array) -> UInt8Array:
    """uint8 (H, W, 4) → the same, RGB composited on white and a fourth channel without meaning. For strips."""
    return pillow_pixels(_strip_to_rgb(PIL.Image.fromarray(rgba)))


def boxes(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Strips of a picture, as (left, top, right, bottom)."""
    columns = min(width, STRIP_PIXELS)
    rows = max(STRIP_PIXELS // columns, 1)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(left + columns, width), min(top + rows, height)
