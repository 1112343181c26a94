"""Compiled from resample.c by a C compiler; without it model/preprocess.py uses Pillow, and model/resize.py NumPy."""

from model.types import UInt8Array

def window(
    picture: tuple[object, object] | bytes | UInt8Array,
    size: tuple[int, int],
    resized: tuple[int, int],
    corner: tuple[int, int],
    window: tuple[int, int],
    out: UInt8Array | bytearray,
    /,
) -> None:
    """Write a window of the picture, resized as Pillow's `resize(…, BICUBIC)` does it, to `out`: uint8 (h, w, 3).

    All pairs are (height, width); the corner is (top, left). `picture` has three bytes a
    pixel, or four, the last one unused: a contiguous bytes-like object, or an Arrow array's two capsules (zero-copy
    from Pillow's mode RGB). The GIL is released.

    Raises:
        TypeError, ValueError: sizes, buffers or window do not fit together, or a side has more than 2^20 pixels.
        MemoryError: the intermediate picture does not fit in memory.
    """

def bilinear(picture: UInt8Array, out: UInt8Array, /) -> None:
    """See `model.resize.resize_bilinear`. The GIL is released."""

def copy(picture: UInt8Array, out: UInt8Array, /) -> None:
    """See `model.resize.copy_pixels`. The GIL is released."""

def run_lengths(data: memoryview, wide: bool, width: int, out: bytearray, /) -> None:
    """Decode BMP's run lengths of 8 bits, if `wide`, or 4, to `out`: the index of each pixel, in rows of `width`, zeros
    before. The GIL is released.

    Raises:
        ValueError: a run exceeds its row, or the data end before the picture does.
    """
