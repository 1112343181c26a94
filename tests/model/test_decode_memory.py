"""Memory of decoding: how much it takes at its peak, that it is given back, and what happens where there is too little.

Each picture is decoded in a process of its own, whose peak is the kernel's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from model.containers.isobmff import Property
from model.decode import DecodeLimits, read_header
from tests.model.heif_files import grid_of, irot, picture
from tests.model.picture_files import BIT_FIELDS, bmp, encoded, exif, gif_on_screen, png, png_chunk
from tests.model.tiff_files import DEFLATE, tiff

ROOT = Path(__file__).resolve().parents[2]
LIMITS = DecodeLimits(max_bytes=20 << 20, max_pixels=50_000_000)
SIDE = 2000
SIDEWAYS = 6
ALLOWANCE = 9 << 20
"""Bytes for the encoded file, strips, the input, what the allocator keeps, and a page of 2 MiB that the kernel may use:
less than a copy of the picture."""


def smooth(side: int) -> PIL.Image.Image:
    y, x = np.mgrid[0:side, 0:side].astype(np.uint16)
    return PIL.Image.fromarray(np.stack([x >> 4, y >> 4, (x + y) >> 5], axis=2).astype(np.uint8))


def written(mode: str, image_format: str, **options: Any) -> Callable[[int], bytes]:  # noqa: ANN401  (Pillow's)
    return lambda side: encoded(smooth(side).convert(mode), image_format, **options)


def with_a_key(side: int) -> bytes:
    samples = np.asarray(smooth(side)).astype(np.uint16) << 8 | 3
    return png(samples, 16, png_chunk(b"tRNS", samples[1, 1].astype(">u2").tobytes()))


def on_a_screen(side: int) -> bytes:
    """The frame has nearly the size of its screen."""
    return gif_on_screen(written("P", "GIF")(side - 1), (side, side), (1, 1))


def masked(side: int) -> bytes:
    values = np.asarray(smooth(side)).astype(np.uint32) << (0, 8, 16)
    return bmp(values.sum(axis=2, dtype=np.uint32) | 0x7F000000, 32, BIT_FIELDS, MASKS, header_bytes=108)


def in_tiles(side: int, *properties: Property) -> bytes:
    tiles = -(-side // 512)
    return grid_of(picture("large_tile"), tiles, tiles, side, side, properties)


MASKS = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
CASES: dict[str, tuple[Callable[[int], bytes], float]] = {
    # the file, and bytes a pixel at the peak
    "jpeg": (written("RGB", "JPEG"), 3),
    "jpeg sideways": (written("RGB", "JPEG", exif=exif(SIDEWAYS)), 6),
    "jpeg grey": (written("L", "JPEG"), 3),
    "jpeg cmyk": (written("CMYK", "JPEG"), 4),
    "jpeg progressive": (written("RGB", "JPEG", progressive=True), 6),
    "png": (written("RGB", "PNG", compress_level=1), 4),
    "png sideways": (written("RGB", "PNG", compress_level=1, exif=exif(SIDEWAYS)), 6),
    "png alpha": (written("RGBA", "PNG", compress_level=1), 4),
    "png palette": (written("P", "PNG", compress_level=1, transparency=3), 5),
    "png 16-bit key": (with_a_key, 8),
    "gif": (written("P", "GIF", transparency=3), 5),
    "gif on a screen": (on_a_screen, 8),
    "bmp bilevel": (written("1", "BMP"), 5),
    "bmp masks": (masked, 3),
    "webp": (written("RGB", "WEBP", method=0), 6),
    "webp sideways": (written("RGB", "WEBP", method=0, exif=exif(SIDEWAYS)), 6),
    "avif": (written("RGB", "AVIF", speed=10), 9.2),
    "avif sideways": (written("RGB", "AVIF", speed=10, exif=exif(SIDEWAYS)), 9.2),
    "avif alpha": (written("RGBA", "AVIF", speed=10), 12),
    "heic": (in_tiles, 5.2),
    "heic sideways": (lambda side: in_tiles(side, irot(1)), 6.7),
    "tiff": (written("RGB", "TIFF"), 7),
    "tiff sideways": (lambda side: tiff(np.asarray(smooth(side)), tags={274: (SIDEWAYS,)}), 9),
    "tiff lzw": (written("RGB", "TIFF", compression="tiff_lzw"), 4),
    "tiff lzw and alpha": (written("RGBA", "TIFF", compression="tiff_lzw"), 5),
    "tiff in one strip": (written("RGB", "TIFF", compression="tiff_lzw", tiffinfo={278: SIDE}), 7),
    "tiff 16 bits": (
        lambda side: tiff(np.asarray(smooth(side).convert("L")).astype(np.uint16), compression=DEFLATE),
        6,
    ),
    "tiff cmyk": (written("CMYK", "TIFF", compression="packbits"), 8),
    "tiff jpeg": (written("RGB", "TIFF", compression="jpeg"), 4),
    "webp lossless": (written("RGB", "WEBP", lossless=True, method=0, quality=0), 7),
}

DECODER = """
import os, resource, sys, traceback
from pathlib import Path
from model.decode import DecodeLimits, decode, decode_picture
from model.errors import OutOfMemory
from model.preprocess import prepare_picture
from model.spec import CenterCropSpec, KeepRatioSpec

LIMITS = DecodeLimits(20 << 20, 50_000_000)
WAYS = {
    "crop": lambda data: prepare_picture(decode_picture(data, LIMITS), CenterCropSpec()),
    "ratio": lambda data: prepare_picture(decode_picture(data, LIMITS), KeepRatioSpec(long_side=400, short_side=300)),
    "array": lambda data: decode(data, LIMITS),
}

def memory(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

def measure(small, large):
    for name, way in WAYS.items():
        way(small)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        result = way(large)
        peak = memory("VmHWM") - before
        del result
        print(name, peak, memory("VmRSS") - before)

def lack(small, large):
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

while line := sys.stdin.readline():
    action, *files = line.split()
    if pid := os.fork():
        print("ended with", os.waitpid(pid, 0)[1], flush=True)
        continue
    try:
        globals()[action](*(Path(file).read_bytes() for file in files))
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)
"""
"""Runs `measure` or `lack` in a forked process for each line of stdin. Imports take longer than most pictures."""


@dataclass(frozen=True)
class Case:
    """A format's files, a small and a large one, the bytes a pixel at the peak, and what the large one's header
    promises."""

    files: tuple[Path, Path]
    pixel_bytes: float
    promised: int


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Both tests of a format run one after another: encoding takes longer than decoding."""
    encode, pixel_bytes = CASES[request.param]
    folder = tmp_path_factory.mktemp("case")
    files = folder / "small", folder / "large"
    for file, side in zip(files, (64, SIDE), strict=True):
        file.write_bytes(encode(side))
    return Case(files, pixel_bytes, read_header(files[1].read_bytes(), LIMITS).decode_bytes)


Run = Callable[[str, Case], list[str]]
"""What an action prints about a case."""


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    # Of glibc: it keeps none of the large blocks, and reserves none for the threads of decoders. A thread would be lost
    # in a forked process.
    tuned = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DECODER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | tuned, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        requests, printed = process.stdin, process.stdout

        def run_one(action: str, case: Case) -> list[str]:
            print(action, *case.files, file=requests, flush=True)
            lines = []
            while (line := printed.readline().rstrip()) and not line.startswith("ended with"):
                lines.append(line)
            assert line == "ended with 0", lines
            return lines

        yield run_one
        requests.close()


def test_a_pixel_takes_few_bytes_and_they_are_given_back(case: Case, run: Run) -> None:
    """The peak of decoding and resizing is that of one copy of the picture, as the format's table has it: no copy in
    between. It is no more than the header promises, and is given back."""
    for line in run("measure", case):
        way, peak, kept = line.split()
        assert int(peak) < case.pixel_bytes * SIDE * SIDE + ALLOWANCE, way
        assert int(peak) < case.promised + ALLOWANCE, way
        assert int(kept) < ALLOWANCE, way


def test_too_little_memory_is_no_fault_of_the_picture(case: Case, run: Run) -> None:
    """Where a decoder gets no memory the error is OutOfMemory, whatever the decoder raises; later it decodes."""
    lines = run("lack", case)
    assert len(lines) == 3
    assert all(re.search(r"takes up to [0-9,]+ bytes of memory, which are not available now", line) for line in lines)
