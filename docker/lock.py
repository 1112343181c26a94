"""Writes docker/locks: every package that the images hold, or are made with, pinned, with hashes. `make locks` runs it.

What is locked is read from the two pyproject.toml files, so those stay the one place where dependencies are named.
Everything is for the images' own Python and platform, whatever runs this.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "docker" / "locks"
PLATFORM = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
TORCH_CPU = "https://download.pytorch.org/whl/cpu/torch/"
C_COMPILER = "ziglang>=0.17"
"""The base image has none. This one is a wheel, so that builds without network have it too."""
OWN = "convmlp-"
"""What begins like this is built from this source tree."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--torch-cpu", default=TORCH_CPU, help="page or folder with torch's wheels for the CPU")
    parser.add_argument("--upgrade", action="store_true", help="take newer versions; else only what must change does")
    given = parser.parse_args()
    service, client = (_read(ROOT / name) for name in ("pyproject.toml", "client/pyproject.toml"))
    extras = service["project"]["optional-dependencies"]
    serving = [
        *service["project"]["dependencies"],
        *client["project"]["dependencies"],
        *client["project"]["optional-dependencies"]["grpc"],
        # Nothing can be installed into an image later; whether there are traces is a setting.
        *extras["tracing"],
    ]
    more = ("--upgrade",) if given.upgrade else ()
    _lock("build", [*service["build-system"]["requires"], *client["build-system"]["requires"], C_COMPILER], *more)
    _lock("frontend", serving, *more)
    _lock("sbom", ["cyclonedx-bom>=7"], *more)
    # The worker's image lies on the front-end's packages: these locks name only what it has beyond them.
    frontend = LOCKS / "frontend.txt"
    beyond = ("--constraint", str(frontend), *(f"--no-emit-package={one}" for one in _names(frontend)))
    _lock("worker-cuda", [*serving, *extras["worker"]], *beyond, *more)
    on_cpu = [f"{one}+cpu" if one.startswith("torch==") else one for one in extras["worker"]]
    _lock("worker-cpu", [*serving, *on_cpu], *beyond, "--find-links", given.torch_cpu, *more)


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _names(lock: Path) -> list[str]:
    return [line.partition("==")[0] for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]


def _lock(name: str, requirements: list[str], *options: str) -> None:
    command = ["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"]
    subprocess.run(
        [sys.executable, "-m", *command, *PLATFORM, *options, "--output-file", str(LOCKS / f"{name}.txt"), "-"],
        input="\n".join(one for one in requirements if not one.startswith(OWN)),
        text=True,
        check=True,
    )


if __name__ == "__main__":
    main()
