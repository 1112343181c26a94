"""Built of resample.c where there is a C compiler; model/preprocess.py does without where there is none."""

from model.types import UInt8Array

def window(
    picture: tuple[object, object] | bytes,
    size: tuple[int, int],
    resized: tuple[int, int],
    corner: tuple[int, int],
    window: tuple[int, int],
    out: UInt8Array | bytearray,
    /,
) -> None:
    """Write a window of the picture, resized as Pillow's `resize(…, BICUBIC)` does it, to `out`: uint8 (h, w, 3).

    All pairs are (height, width), and the corner (top, left). `picture` is four bytes a pixel, of which the last says
    nothing, as an Arrow array's two capsules (zero-copy from Pillow's pictures in mode RGB) or anything else that
    holds bytes. The GIL is released.

    Raises:
        TypeError, ValueError: sizes, buffers or window do not fit together, or a side has more than 2^20 pixels.
        MemoryError: no room for the intermediate picture.
    """
