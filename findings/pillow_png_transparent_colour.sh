#!/usr/bin/env bash
# Pillow 13 makes the wrong pixels of a PNG transparent where the samples have 2, 4 or 16 bits.
#
# A PNG without alpha may name one transparent grey or colour (tRNS), in as many bits as its samples have. Pillow spreads
# samples of 2 and 4 bits over 8 and compares them with the number as it is stored: of 2-bit grey, key 3 (white) makes nothing
# transparent. Of 16-bit colours it keeps the high bytes and compares them with the key's low ones. The
# specification has them compared at the depth of the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct
import zlib

import PIL
import PIL.Image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, row: bytes, key: bytes) -> bytes:
    """A PNG of four pixels in one row."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"tRNS", key) + pixels + chunk(b"IEND", b"")


def transparent(data: bytes) -> list[int]:
    """The pixels that Pillow makes transparent."""
    picture = PIL.Image.open(io.BytesIO(data)).convert("RGBA")
    return [x for x in range(picture.width) if picture.getpixel((x, 0))[3] == 0]


print(f"Pillow {PIL.__version__}")
colours = b"".join(struct.pack(">H", sample) * 3 for sample in (0x1234, 0x1235, 0x3412, 0x3434))
cases = {
    "2-bit grey 0 1 2 3, key 3": (png(2, 0, bytes([0b00011011]), b"\0\3"), [3], []),
    "4-bit grey 0 5 10 15, key 5": (png(4, 0, bytes([0x05, 0xAF]), b"\0\5"), [1], []),
    "16-bit colours 1234 1235 3412 3434, key 1234": (png(16, 2, colours, b"\x12\x34" * 3), [0], [2, 3]),
}
for name, (data, expected, seen) in cases.items():
    found = transparent(data)
    print(f"{name}: pixels {found} are transparent, {expected} should be")
    assert found == seen, "it is different now"
PYTHON
