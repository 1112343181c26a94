"""Fetches every wheel that a build of the images needs, for builds without network: `fetch.py cpu|cuda FOLDER`.

The wheels are for the images' Python and platform, not this machine's. pip's own configuration selects the index.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).resolve().parent / "locks"
TORCH_CPU = "https://download.pytorch.org/whl/cpu/torch/"
OLDEST_GLIBC, GLIBC = 5, 28
"""Minor versions of glibc that a wheel may be built for."""


def main(variant: str, folder: Path) -> None:
    for name in ("build", "frontend"):
        _download(name, folder)
    try:
        _download(f"worker-{variant}", folder)
    except subprocess.CalledProcessError:
        if variant != "cpu":
            raise
        # torch's CPU wheel is on no package index, unless this machine's configuration has one.
        _download("worker-cpu", folder, "--find-links", TORCH_CPU)


def _download(lock: str, folder: Path, *options: str) -> None:
    platforms = [*(f"manylinux_2_{minor}_x86_64" for minor in range(OLDEST_GLIBC, GLIBC + 1)), "manylinux2014_x86_64"]
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
            *("--only-binary=:all:", "--implementation=cp", "--python-version=3.11"),
            *("--abi=cp311", "--abi=abi3", "--abi=none", *(f"--platform={one}" for one in platforms)),
            *("--requirement", str(LOCKS / f"{lock}.txt"), "--dest", str(folder), *options),
        ],
        check=True,
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
