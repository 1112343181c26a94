"""Which tests run alone, and which are left out of `make test-fast`: one table for all folders.

A pattern is of a path below tests/ and may name a folder. `make test` runs what is not `serial` over all cores, and
then what is, one test at a time; `make test-fast` runs what is neither `serial` nor `slow`.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import hypothesis
import pytest

# How long an example takes says nothing on a machine that has other things to do.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

HERE = Path(__file__).parent

SERIAL = (
    # Whole services, and processes that are killed: they use all cores, and have deadlines.
    "compose",
    "e2e",
    "gpu",
    "deploy/test_k8s_probes.py",
    "*/test_tracing_process.py",
    "*/test_worker_process.py",
    # CPU time, memory and rates are measured.
    "benchmarks/test_processes.py",
    "benchmarks/test_servers.py",
    # Chromium has processes of its own, one for each core.
    "browser",
)
SLOW = (
    "model/training",
    # The authors' own networks, at their size.
    "model/net/test_goldens.py",
    "model/zoo/test_golden_answers.py",
    # Each starts `convmlp`, a part of the service, or another process, again and again.
    "benchmarks/test_parity.py",
    "client/test_process.py",
    "service/cli/test_*.py",
    "*/test_logs.py",
    "*/test_openmp.py",
    "*/test_exposition.py",
    "*/test_server_process.py",
    "*/test_settings.py",
    # Large pictures, and thousands of made-up inputs.
    "*/test_detection_ops.py",
    "*/test_overlay.py",
    # Both transports, a fresh service for each test.
    "*/test_error_tables.py",
    "*/test_metrics_refusals.py",
    "*/test_tracing.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(HERE)
        if matches(path, SERIAL):
            item.add_marker(pytest.mark.serial)
        if matches(path, SLOW):
            item.add_marker(pytest.mark.slow)


def matches(path: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern is of this path, relative to tests/, or of a folder that it lies in."""
    return any(fnmatch(str(one), pattern) for one in (path, *path.parents) for pattern in patterns)
