#!/usr/bin/env bash
# simplejpeg 1.9.0 with strict=False returns half a picture for a fatal error, and raises for a harmless warning.
#
# `strict=False` is to ignore recoverable errors. TurboJPEG reports any failure as a warning once libjpeg has warned: of a
# truncated JPEG with a whole one behind it, libjpeg warns of missing data and then fails at the second start marker, and the
# picture is returned with its lower half grey. Warnings while the header is read, such as an unknown version of JFIF, are
# raised in spite of `strict=False`. With the default, strict=True, both raise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install simplejpeg==1.9.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import simplejpeg

y, x = np.mgrid[0:160, 0:240]
waves = np.stack([128 + 100 * np.sin(x / 9 + shift) * np.cos(y / 7) for shift in (0, 1, 2)], axis=2)
jpeg = simplejpeg.encode_jpeg(waves.astype(np.uint8))
print("simplejpeg", simplejpeg.__version__)


def decode(data: bytes, strict: bool) -> str:
    try:
        picture = simplejpeg.decode_jpeg(data, strict=strict)
    except ValueError as error:
        return str(error)
    rows = [row for row in range(len(picture)) if picture[row].std() > 1]
    return f"a picture with content in rows {rows[0]} to {rows[-1]} of {len(picture)}"


glued = jpeg[: len(jpeg) // 2] + jpeg
version = jpeg.index(b"JFIF\0") + 5
odd = jpeg[:version] + b"\3" + jpeg[version + 1 :]
for name, data in (("whole", jpeg), ("half and a whole one", glued), ("JFIF 3", odd)):
    for strict in (True, False):
        print(f"{name}, strict={strict}:", decode(data, strict))
assert "of 160" in decode(jpeg, strict=True)
assert "two SOI markers" in decode(glued, strict=True)
assert "of 160" in decode(glued, strict=False), "the failure is raised now"
assert "JFIF" in decode(odd, strict=False), "the warning is ignored now"
PYTHON
