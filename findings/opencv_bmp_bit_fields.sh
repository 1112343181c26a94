#!/usr/bin/env bash
# OpenCV 5.0.0 reads 32-bit BMPs as blue, green, red, whatever masks the file declares.
#
# A BMP of kind BI_BITFIELDS names the bits of red, green and blue of a pixel. OpenCV applies two usual sets of masks to 16-bit
# pixels and refuses others, but takes no notice of the masks of 32-bit pixels: of a file that stores red in the lowest byte red
# and blue are swapped, without an error. Pillow refuses masks that it does not know, and reads those below, XBGR, right.
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


def bmp(value: int, masks: tuple[int, int, int]) -> bytes:
    """A BMP of one pixel of 32 bits."""
    info = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 32, 3, 4, 0, 0, 0, 0) + struct.pack("<III", *masks)
    return struct.pack("<2sIHHI", b"BM", 14 + len(info) + 4, 0, 0, 14 + len(info)) + info + struct.pack("<I", value)


def by_opencv(data: bytes) -> list[int]:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)[0, 0].tolist()


print(f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}; the pixel is red 200, green 100, blue 50")
usual = bmp(200 << 16 | 100 << 8 | 50, (0xFF0000, 0xFF00, 0xFF))
rgbx = bmp(50 << 16 | 100 << 8 | 200, (0xFF, 0xFF00, 0xFF0000))
xbgr = bmp(200 << 24 | 100 << 16 | 50 << 8, (0xFF000000, 0xFF0000, 0xFF00))
for name, data in (("usual masks", usual), ("red in the lowest byte", rgbx), ("red in the highest byte", xbgr)):
    print(f"OpenCV, {name}:", by_opencv(data))
seen = PIL.Image.open(io.BytesIO(xbgr)).convert("RGB").getpixel((0, 0))
print("Pillow, red in the highest byte:", seen)
assert by_opencv(usual) == [200, 100, 50]
assert by_opencv(rgbx) == [50, 100, 200], "OpenCV no longer ignores the masks"
assert by_opencv(xbgr) == [100, 50, 0], "OpenCV no longer ignores the masks"
assert seen == (200, 100, 50)
PYTHON
