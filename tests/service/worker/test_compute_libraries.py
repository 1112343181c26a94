"""The spin count that the worker gives OpenMP, as libgomp reports it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SHOWS = """
from service.worker.compute_libraries import SPINS, configure_libraries
configure_libraries()
print(SPINS)
import torch
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is that of torch's wheels for Linux")
@pytest.mark.parametrize(("given", "expected"), [({}, None), ({"GOMP_SPINCOUNT": "1234"}, "1234")])
def test_openmp_gets_the_spin_count(given: dict[str, str], expected: str | None) -> None:
    """libgomp reports the worker's spin count, or the operator's where it is set."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    ran = subprocess.run(
        [sys.executable, "-c", SHOWS],
        env={**clean, "OMP_DISPLAY_ENV": "VERBOSE", **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{expected or ran.stdout.strip()}'" in ran.stderr
