#!/usr/bin/env bash
# OpenCV 5.0.0 refuses a valid WebP file of less than 32 bytes, which Pillow and libwebp read.
#
# A lossless WebP of one pixel has 28 bytes: 12 of RIFF, 8 of the chunk's head, 8 of the bitstream. `cv2.imdecode` wants
# 32 bytes before it looks at the format, returns None and writes an error to stderr. The same file with four zero bytes
# behind its end is decoded.
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

# 14 bits of width - 1, 14 of height - 1, no alpha; no transform, no cache; five codes of one symbol each.
bitstream = b"\x2f" + bytes(4) + b"\x88\x88\x08"
chunk = b"VP8L" + struct.pack("<I", len(bitstream)) + bitstream
data = b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
print(f"OpenCV {cv2.__version__}, Pillow {PIL.__version__}, a WebP of {len(data)} bytes")

picture = PIL.Image.open(io.BytesIO(data)).convert("RGB")
print("Pillow:", picture.size, picture.getpixel((0, 0)))
refused = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
print("OpenCV:", refused)
padded = cv2.imdecode(np.frombuffer(data + bytes(4), np.uint8), cv2.IMREAD_COLOR)
print("OpenCV, four zero bytes behind it:", None if padded is None else padded.tolist())
assert picture.size == (1, 1), "Pillow no longer reads the file"
assert refused is None, "OpenCV reads the file now"
assert padded is not None, "OpenCV no longer reads the padded file"
PYTHON
