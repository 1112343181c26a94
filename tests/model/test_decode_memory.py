"""Memory of decoding: how much it takes at its peak, that it is given back, and what happens where there is too little.

Each picture is decoded in a process of its own, whose peak is the kernel's."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from model.decode import DecodeLimits, read_header
from tests.model import heif_files

ROOT = Path(__file__).resolve().parents[2]
LIMITS = DecodeLimits(max_bytes=20 << 20, max_pixels=50_000_000)
SIDE = 2000
SIDEWAYS = 6
ALLOWANCE = 7 << 20
"""Bytes for the encoded file, strips, the input, what the allocator keeps: less than a copy of the picture."""


def smooth(side: int) -> PIL.Image.Image:
    y, x = np.mgrid[0:side, 0:side].astype(np.uint16)
    return PIL.Image.fromarray(np.stack([x >> 4, y >> 4, (x + y) >> 5], axis=2).astype(np.uint8))


def encoded(side: int, mode: str, image_format: str, options: dict[str, Any]) -> bytes:
    if image_format == "HEIC":
        tiles = -(-side // 512)
        return heif_files.grid_of(heif_files.picture("large_tile"), tiles, tiles, side, side, **options)
    file = io.BytesIO()
    picture = smooth(side)
    picture = picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)
    picture.save(file, image_format, **options)
    return file.getvalue()


def sideways() -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = SIDEWAYS
    return exif


CASES: dict[str, tuple[str, str, dict[str, Any], float]] = {
    # mode, format, options, and bytes a pixel at the peak
    "jpeg": ("RGB", "JPEG", {}, 4),
    "jpeg sideways": ("RGB", "JPEG", {"exif": sideways()}, 6),
    "jpeg grey": ("L", "JPEG", {}, 5),
    "jpeg cmyk": ("CMYK", "JPEG", {}, 4),
    "jpeg progressive": ("RGB", "JPEG", {"progressive": True}, 7),
    "png": ("RGB", "PNG", {"compress_level": 1}, 4),
    "png sideways": ("RGB", "PNG", {"compress_level": 1, "exif": sideways()}, 6),
    "png alpha": ("RGBA", "PNG", {"compress_level": 1}, 4),
    "png palette": ("P", "PNG", {"compress_level": 1, "transparency": 3}, 5),
    "gif": ("P", "GIF", {"transparency": 3}, 5),
    "bmp bilevel": ("1", "BMP", {}, 5),
    "webp": ("RGB", "WEBP", {"method": 0}, 6),
    "webp sideways": ("RGB", "WEBP", {"method": 0, "exif": sideways()}, 6),
    "avif": ("RGB", "AVIF", {"speed": 10}, 9.2),
    "avif sideways": ("RGB", "AVIF", {"speed": 10, "exif": sideways()}, 9.2),
    "avif alpha": ("RGBA", "AVIF", {"speed": 10}, 12),
    "heic": ("RGB", "HEIC", {}, 5.2),
    "heic sideways": ("RGB", "HEIC", {"properties": [heif_files.irot(1)]}, 6.7),
    "tiff": ("RGB", "TIFF", {}, 7),
    "tiff sideways": ("RGB", "TIFF", {"exif": sideways()}, 9),
    "tiff lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}, 4),
    "tiff lzw and alpha": ("RGBA", "TIFF", {"compression": "tiff_lzw"}, 5),
    "tiff in one strip": ("RGB", "TIFF", {"compression": "tiff_lzw", "tiffinfo": {278: SIDE}}, 7),
    "tiff 16 bits": ("I;16", "TIFF", {"compression": "tiff_adobe_deflate"}, 5),
    "tiff cmyk": ("CMYK", "TIFF", {"compression": "packbits"}, 8),
    "tiff jpeg": ("RGB", "TIFF", {"compression": "jpeg"}, 4),
    "webp lossless": ("RGB", "WEBP", {"lossless": True, "method": 0, "quality": 0}, 7),
}

PREPARING = """
import sys
from pathlib import Path
from model.decode import DecodeLimits, decode, decode_picture
from model.preprocess import prepare_picture
from model.spec import CenterCropSpec, KeepRatioSpec

LIMITS = DecodeLimits(20 << 20, 50_000_000)
WAYS = {
    "crop": lambda data: prepare_picture(decode_picture(data, LIMITS), CenterCropSpec()),
    "ratio": lambda data: prepare_picture(decode_picture(data, LIMITS), KeepRatioSpec(long_side=400, short_side=300)),
    "array": lambda data: decode(data, LIMITS),
}
small, large = (Path(name).read_bytes() for name in sys.argv[1:])
"""
MEASURING = f"""{PREPARING}
def memory(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

for name, way in WAYS.items():
    way(small)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    result = way(large)
    peak = memory("VmHWM") - before
    del result
    print(name, peak, memory("VmRSS") - before)
"""
LACKING = f"""{PREPARING}
import resource

from model.errors import OutOfMemory

for way in WAYS.values():
    way(small)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), -1))
    try:
        way(large)
    except OutOfMemory as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    way(large)
"""


def run(script: str, name: str, folder: Path) -> list[str]:
    mode, image_format, options, _ = CASES[name]
    paths = [folder / "small", folder / "large"]
    for path, side in zip(paths, (64, SIDE), strict=True):
        path.write_bytes(encoded(side, mode, image_format, options))
    command = [sys.executable, "-c", script, *map(str, paths)]
    # Of glibc: it keeps none of the large blocks, and reserves none for the threads of decoders.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "1"}
    child = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return child.stdout.splitlines()


@pytest.mark.parametrize("name", CASES)
def test_a_pixel_takes_few_bytes_and_they_are_given_back(name: str, tmp_path: Path) -> None:
    """The peak of decoding and resizing is that of one copy of the picture, as the format's table has it: no copy in
    between. It is no more than the header promises, and is given back."""
    mode, image_format, options, pixel_bytes = CASES[name]
    data = encoded(SIDE, mode, image_format, options)
    promised = read_header(data, LIMITS).decode_bytes
    for line in run(MEASURING, name, tmp_path):
        way, peak, kept = line.split()
        assert int(peak) < pixel_bytes * SIDE * SIDE + ALLOWANCE, way
        assert int(peak) < promised + ALLOWANCE, way
        assert int(kept) < ALLOWANCE, way


@pytest.mark.parametrize("name", CASES)
def test_too_little_memory_is_no_fault_of_the_picture(name: str, tmp_path: Path) -> None:
    """Where a decoder gets no memory the error is OutOfMemory, whatever the decoder raises; later it decodes."""
    lines = run(LACKING, name, tmp_path)
    assert len(lines) == 3
    assert all(re.search(r"takes up to [0-9,]+ bytes of memory, which are not available now", line) for line in lines)
