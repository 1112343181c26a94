"""Pins every package, and most by the hashes of its files. `make locks` runs it.

- requirements/*.txt is for `make serve`, `make test`, `make bench` and `make test-cluster`: any Python and platform
  that the project is for.
- docker/locks/*.txt is for the images: their own Python and platform. Versions are those of requirements/.

What is pinned is read from the two pyproject.toml files, so those stay the one place where dependencies are named.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "requirements"
IMAGES = ROOT / "docker" / "locks"
IMAGES_PLATFORM = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
TORCH_CPU = "https://download.pytorch.org/whl/cpu/torch/"
C_COMPILER = "ziglang>=0.17"
"""The images' base has none. This one is a wheel, so that builds without network have it too."""
OWN = "convmlp-"
"""What begins like this is built from this source tree."""
UNUSED = ("fsspec", "jinja2", "markupsafe", "networkx", "setuptools")
"""What torch needs for `torch.compile` and its C++ extensions alone, which the images have no compiler for."""
OF_TORCH = re.compile(r"torch$|triton$|cuda-|nvidia-(?!ml-py)")
"""torch and what its build for CUDA alone brings. A user may install another build, from another index, with hashes of
its own: these have versions only."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--torch-cpu", default=TORCH_CPU, help="page or folder with torch's wheels for the CPU")
    parser.add_argument("--upgrade", action="store_true", help="take newer versions; else only what must change does")
    given = parser.parse_args()
    more = ("--upgrade",) if given.upgrade else ()
    service, client = (_read(ROOT / name) for name in ("pyproject.toml", "client/pyproject.toml"))
    build = [*service["build-system"]["requires"], *client["build-system"]["requires"]]
    serving = [
        *service["project"]["dependencies"],
        *client["project"]["dependencies"],
        *client["project"]["optional-dependencies"]["grpc"],
    ]
    extras = service["project"]["optional-dependencies"]
    _lock_development(
        {
            "serve": [*build, *serving, *extras["worker"], *extras["heif"], *extras["train"]],
            "dev": extras["dev"],
            "bench": extras["bench"],
            "cluster": extras["cluster"],
        },
        *more,
    )
    # Nothing can be installed into an image later; whether there are traces is a setting, and what comes is unknown.
    _lock_images(build, [*serving, *extras["tracing"], *extras["heif"]], extras["worker"], given.torch_cpu, *more)


def _lock_development(parts: dict[str, list[str]], *more: str) -> None:
    """One resolution of everything. Each file, named as its part, has what it needs beyond the parts before it."""
    torch, *files = [HERE / f"{name}.txt" for name in ("torch", *parts)]
    universal = ("--universal", "--python-version", "3.11")
    with tempfile.TemporaryDirectory() as folder:
        everything, part = Path(folder) / "everything.txt", Path(folder) / "part.txt"
        everything.write_text("".join(_text(file) for file in (torch, *files)), encoding="utf-8")
        needs = [one for of_part in parts.values() for one in of_part]
        _compile(everything, needs, *universal, "--generate-hashes", *more)
        left = dict[str, list[str]]()
        for entry in _entries(everything):
            left.setdefault(entry.partition("==")[0], []).append(entry)
        of_torch = [entry.partition(" \\\n")[0] for name in left if OF_TORCH.match(name) for entry in left[name]]
        _write(torch, of_torch)
        left = {name: entries for name, entries in left.items() if not OF_TORCH.match(name)}
        needs = []
        for file, of_part in zip(files, parts.values(), strict=True):
            needs += of_part
            part.unlink(missing_ok=True)
            _compile(part, needs, *universal, "--constraint", str(everything))
            _write(file, [entry for name in sorted(_names(part) & left.keys()) for entry in left.pop(name)])


def _lock_images(build: list[str], serving: list[str], worker: list[str], torch_cpu: str, *more: str) -> None:
    options = ("--generate-hashes", *IMAGES_PLATFORM, *more)
    same = [option for file in sorted(HERE.glob("*.txt")) for option in ("--constraint", str(file))]
    frontend = IMAGES / "frontend.txt"
    _compile(IMAGES / "build.txt", [*build, C_COMPILER], *options, *same)
    _compile(frontend, serving, *options, *same)
    _compile(IMAGES / "sbom.txt", ["cyclonedx-bom>=7"], *options)
    # The worker's image lies on the front-end's packages: these locks name only what it has beyond them.
    beyond = ("--constraint", str(frontend), *_without(_names(frontend)))
    _compile(IMAGES / "worker-cuda.txt", [*serving, *worker], *options, *same, *beyond)
    on_cpu = [f"{one}+cpu" if one.startswith("torch==") else one for one in worker]
    smaller = _without(UNUSED)
    _compile(
        IMAGES / "worker-cpu.txt", [*serving, *on_cpu], *options, *same, *beyond, *smaller, "--find-links", torch_cpu
    )


def _read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _text(lock: Path) -> str:
    return lock.read_text(encoding="utf-8") if lock.exists() else ""


def _entries(lock: Path) -> list[str]:
    """A package each: NAME==VERSION, perhaps a marker, and the hashes on lines of their own."""
    return re.split(r"\n(?=\S)", _text(lock).strip())


def _names(lock: Path) -> set[str]:
    return {entry.partition("==")[0] for entry in _entries(lock)}


def _write(lock: Path, entries: Iterable[str]) -> None:
    lock.write_text("".join(f"{entry}\n" for entry in entries), encoding="utf-8")


def _without(names: Iterable[str]) -> list[str]:
    return [f"--no-emit-package={name}" for name in sorted(names)]


def _compile(lock: Path, requirements: list[str], *options: str) -> None:
    command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *options, "--output-file", str(lock)]
    subprocess.run(
        [sys.executable, "-m", *command, "-"],
        input="\n".join(one for one in requirements if not one.startswith(OWN)),
        text=True,
        check=True,
    )


if __name__ == "__main__":
    main()
