#!/usr/bin/env bash
# OpenCV 5.0.0 does not rotate an AVIF, which it does for a JPEG with the same orientation.
#
# `cv2.imdecode` with IMREAD_COLOR applies EXIF orientation unless IMREAD_IGNORE_ORIENTATION is given. Of an AVIF the boxes
# `irot` and `imir` define the orientation (ISO/IEC 23008-12); libavif leaves them to its caller, and OpenCV applies neither
# them nor the EXIF block beside them. Pillow and browsers show the picture upright.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install \
  opencv-python-headless==5.0.0.93 pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import cv2
import numpy as np
import PIL
import PIL.Image
import PIL.ImageOps

ORIENTATION, ROTATED = 0x0112, 6


def encoded(image_format: str) -> bytes:
    """40 x 30 pixels that shall be shown rotated, 30 x 40."""
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = ROTATED
    file = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), (200, 100, 50)).save(file, image_format, exif=exif)
    return file.getvalue()


def sizes(data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) by Pillow, upright, and by OpenCV."""
    with PIL.Image.open(io.BytesIO(data)) as file:
        pillow = PIL.ImageOps.exif_transpose(file).size
    height, width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    return pillow, (width, height)


print(f"Pillow {PIL.__version__}, OpenCV {cv2.__version__}, upright size by each")
jpeg, avif = encoded("JPEG"), encoded("AVIF")
assert b"irot" in avif
print("JPEG:", *sizes(jpeg))
print("AVIF:", *sizes(avif))
assert sizes(jpeg) == ((30, 40), (30, 40)), "a JPEG is no longer rotated by both"
assert sizes(avif) == ((30, 40), (40, 30)), "OpenCV rotates an AVIF now"
PYTHON
