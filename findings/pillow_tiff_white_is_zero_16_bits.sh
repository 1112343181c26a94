#!/usr/bin/env bash
# Pillow 13 shows 16-bit grey TIFFs whose white is 0 as their negative, in one byte order, and refuses the other.
#
# Of a grey TIFF, the tag PhotometricInterpretation defines whether 0 is white (0) or black (1). Scanners and medical
# devices write both. Pillow inverts 8-bit samples of the first kind. Those of 16 bits it leaves as they are if they are
# little-endian, and raises UnidentifiedImageError if they are big-endian. OpenCV's IMREAD_COLOR, of 8 bits, inverts both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install \
  opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io
import struct

import cv2
import numpy as np
import PIL
import PIL.Image

WHITE_IS_ZERO = 0


def tiff(samples: bytes, bits: int, order: str) -> bytes:
    """A TIFF of 2 x 1 grey samples, uncompressed, whose white is 0."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: WHITE_IS_ZERO, 273: 8, 277: 1, 278: 1, 279: len(samples)}
    directory = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, 8 + len(samples))
    return head + samples + struct.pack(f"{order}H", len(tags)) + directory + bytes(4)


def by_pillow(data: bytes) -> object:
    try:
        with PIL.Image.open(io.BytesIO(data)) as file:
            return np.asarray(file).tolist()[0]
    except PIL.UnidentifiedImageError:
        return "refused"


def by_opencv(data: bytes) -> object:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, 0].tolist()[0]


eight = tiff(bytes([0, 255]), 8, "<")
little, big = (tiff(struct.pack(f"{order}HH", 0, 65535), 16, order) for order in "<>")
print(f"Pillow {PIL.__version__}, OpenCV {cv2.__version__}, samples 0 and the largest, where 0 is white")
for name, data in {"8 bits": eight, "16 bits, little-endian": little, "16 bits, big-endian": big}.items():
    print(f"{name}: Pillow {by_pillow(data)}, OpenCV {by_opencv(data)}")
assert by_pillow(eight) == by_opencv(eight) == [255, 0], "8 bits are no longer inverted"
assert by_opencv(little) == by_opencv(big) == [255, 0], "OpenCV no longer inverts 16 bits"
assert by_pillow(little) == [0, 65535], "Pillow inverts 16 bits now"
assert by_pillow(big) == "refused", "Pillow reads the big-endian file now"
PYTHON
