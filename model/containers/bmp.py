"""BMP: uncompressed pixels."""

from __future__ import annotations

import struct
from io import BytesIO

from PIL.BmpImagePlugin import BmpImageFile

from model.containers.header import ACCEPTED, UPRIGHT, Header, ImageFormat, check_size, header_of
from model.errors import UnsupportedFormat

CORE_HEADER = 12
"""Bytes of the oldest header, with sides of 16 bits."""
RUN_LENGTHS = frozenset({1, 2})
"""Compressions that Pillow decodes pixel by pixel in Python: seconds of the interpreter for a file of 100 bytes."""


def read_header(data: bytes) -> Header:
    """The header of a BMP.

    Raises:
        struct.error: truncated.
        ImageUndecodable: no pixels.
        UnsupportedFormat: run-length encoded.
    """
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == CORE_HEADER:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height, _, _, compression = struct.unpack_from("<IiHHI", data, 18)
        if compression in RUN_LENGTHS:
            raise UnsupportedFormat(
                f"run-length encoded BMP is not supported; send one of {ACCEPTED}, BMP uncompressed"
            )
    # A negative height: the rows are stored from the top.
    return header_of(ImageFormat.BMP, width, abs(height), width * abs(height))


def load(data: bytes, header: Header) -> tuple[BmpImageFile, int]:
    """The picture, and its orientation: a BMP has none. Raises what Pillow does for damaged files."""
    file = BmpImageFile(BytesIO(data))
    check_size(file, header)
    file.load()
    return file, UPRIGHT
