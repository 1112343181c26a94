"""Libraries that images leave out, on copies of the installed packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = ("cc", "as", "ld", "nm", "objdump")
DOCKER = Path(__file__).parents[2] / "docker"
PRODUCTS = Path(__file__).with_name("numpy_products.py")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NumPy and Pillow as in the images."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("packages")
    installed = Path(np.__file__).parents[1]
    if not (installed / "numpy.libs").is_dir():
        pytest.skip("NumPy has no libraries of its own")
    for name in ("numpy", "numpy.libs", "PIL", "pillow.libs"):
        shutil.copytree(installed / name, folder / name, ignore=shutil.ignore_patterns("tests"))
    compiling = ["cc", "-O3", "-fcx-limited-range", "-fPIC", "-Wall", "-Wextra", "-Werror", "-c"]
    subprocess.run([*compiling, "-o", folder / "blas.o", DOCKER / "blas.c"], check=True)
    replacing = (sys.executable, DOCKER / "unused_libraries.py", folder, folder / "blas.o")
    assert subprocess.run(replacing, check=True, capture_output=True, text=True).stderr == ""
    return folder


def test_numpy_s_products_are_right_without_openblas(packages: Path) -> None:
    """OpenBLAS and Fortran's library are left out; products of all kinds of numbers and layouts are as before."""
    (left,) = (packages / "numpy.libs").iterdir()
    assert left.name.startswith("no_scipy_openblas")
    assert left.stat().st_size < 200_000
    found = subprocess.run([sys.executable, PRODUCTS, packages], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_what_is_left_out_ends_the_process(packages: Path) -> None:
    """A function that the images leave out ends the process with a message; it does not return a wrong result."""
    solving = f"import sys; sys.path.insert(0, {str(packages)!r}); import numpy as np; np.linalg.inv(np.eye(2))"
    found = subprocess.run([sys.executable, "-c", solving], capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "NumPy called a function of libscipy_openblas64_, which this image leaves out" in found.stderr


def test_pillow_reads_pictures_without_libxcb(packages: Path) -> None:
    """Pillow's modules load, with every function looked up at once."""
    assert not [*(packages / "pillow.libs").glob("libxcb*")]
    reading = f"import sys; sys.path.insert(0, {str(packages)!r}); import PIL._imaging as one; print(one.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", reading], env={"LD_BIND_NOW": "1"}, capture_output=True, text=True, check=False
    )
    assert found.stdout.strip().startswith(str(packages)), found.stderr
