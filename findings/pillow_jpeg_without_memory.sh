#!/usr/bin/env bash
# Pillow 13 reports lack of memory while a progressive JPEG is decoded as a damaged file.
#
# libjpeg needs memory for the coefficients of a whole progressive picture: six bytes a pixel without chroma subsampling,
# besides the pixels. Where it gets none, Pillow raises the OSError that it raises for damaged data, not MemoryError, so
# a server cannot distinguish a bad file (4xx) from a lack of memory (503). A baseline JPEG of the same size is decoded under
# the same limit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install pillow==13.0.0
"$folder/venv/bin/python" - <<'PYTHON'
import io
import resource
from pathlib import Path

import PIL
import PIL.Image

ROOM = 50_000_000
picture = PIL.Image.effect_noise((3000, 3000), 50).convert("RGB")


def decode_within(room: int, progressive: bool) -> str:
    """What decoding the picture raises if the process may take `room` more bytes of address space."""
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", progressive=progressive)
    file = PIL.Image.open(io.BytesIO(encoded.getvalue()))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    try:
        file.load()
    except Exception as error:
        return repr(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "decoded"


print(f"Pillow {PIL.__version__}, a JPEG of 3000 x 3000 pixels, {ROOM:,} bytes of room")
baseline, short = decode_within(ROOM, progressive=False), decode_within(ROOM, progressive=True)
enough = decode_within(4 * ROOM, progressive=True)
print("baseline:", baseline)
print("progressive:", short)
print("progressive, four times the room:", enough)
assert baseline == "decoded"
assert "broken data stream" in short, "the error is another one now"
assert enough == "decoded"
PYTHON
