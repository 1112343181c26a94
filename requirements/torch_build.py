"""Which build of torch `make serve` installs: prints pip's arguments for it, `torch_build.py auto|cpu|cuda|NAME`.

PyPI's build for Linux has CUDA's libraries, several gigabytes. PyTorch's own index has others, by name: `cpu`, and such
as `cu128`, `rocm6.3` or `xpu` (https://pytorch.org/get-started/locally).
"""

from __future__ import annotations

import os
import re
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

INDEX = "https://download.pytorch.org/whl"
TIMEOUT_S = 4.0
"""Where there is no network, or only that of a mirror, the installation goes on after this time."""


def main(wanted: str) -> int:
    if not re.fullmatch(r"[a-z0-9.]+", wanted):
        sys.stderr.write(f"TORCH={wanted} is no build of torch; expected auto, cpu, cuda, or such as cu128\n")
        return 2
    build = build_for(wanted, sys.platform, has_driver=has_nvidia_driver())
    if build is not None and (build != "cpu" or reaches(f"{INDEX}/cpu/torch/")):
        sys.stdout.write(f"--extra-index-url {INDEX}/{build}\n")
    elif build is not None:
        sys.stderr.write(
            f"{INDEX} cannot be reached: torch comes from the configured package index, perhaps with 2 GB for CUDA\n"
        )
    return 0


def build_for(wanted: str, platform: str, *, has_driver: bool) -> str | None:
    """The folder of PyTorch's index; None for the build on PyPI, which on Linux has CUDA, and elsewhere has not."""
    if wanted == "auto":
        wanted = "cpu" if platform == "linux" and not has_driver else "cuda"
    return None if wanted == "cuda" else wanted


def has_nvidia_driver() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def reaches(url: str, timeout_s: float = TIMEOUT_S) -> bool:
    """Whether a GET begins to be answered, by pip's own settings of offline use, certificates and proxies."""
    if os.environ.get("PIP_NO_INDEX"):
        return False
    try:
        trusted = ssl.create_default_context(cafile=os.environ.get("PIP_CERT"))
        with urllib.request.urlopen(url, timeout=timeout_s, context=trusted):
            return True
    except (OSError, ValueError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
