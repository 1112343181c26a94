"""Markers for all folders, in one table: `serial` and `slow`.

A pattern matches a path below tests/, a file's or a folder's. `make test` runs the tests without `serial` on all cores,
and then those with it, one at a time. `make test-fast` runs the tests with neither marker.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from fnmatch import translate
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog

from service.process import KeptMemory, keep_freed_memory
from service.worker.compute_libraries import configure_libraries
from tests.e2e.convmlp_process import STATE_HOME, RunningService, running_service
from tests.fork_server import FORK_SERVER, ForkServer

# On a busy machine any example may take long.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# As the service logs. structlog's default renders the values of all frames, and blocks an event loop for seconds.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
    ]
)

# As every process that computes, and before torch is imported: tests compare with the answers of such processes.
configure_libraries()
# Networks take the same memory again and again; without this the kernel maps and clears it each time.
keep_freed_memory(KeptMemory(1 << 30, 1 << 30))

# The background jobs of a shell ignore it, and so would the commands that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent

IS_XDIST_WORKER = "PYTEST_XDIST_WORKER" in os.environ
"""Such a process shares the folder of the process that started it."""


RUN = ExitStack()
"""What all processes of a run share."""


pytest_plugins = ["tests.comparison"]


def pytest_configure() -> None:
    if not IS_XDIST_WORKER:
        os.environ[STATE_HOME] = RUN.enter_context(tempfile.TemporaryDirectory(prefix="convmlp-test-state-"))
        os.environ[FORK_SERVER] = RUN.enter_context(ForkServer()).path


def pytest_unconfigure() -> None:
    RUN.close()


SERIAL = (
    "compose",
    "gpu",
    # Rates, and the lag of an event loop, are measured.
    "service/frontend/test_largest_bodies.py",
)
SLOW = (
    "model/training",
    # The authors' own networks, at their size.
    "model/net/test_goldens.py",
    "model/zoo/test_backbone_answers.py",
    "model/zoo/test_golden_answers.py",
    # They start the service, a part of it, `convmlp` or another process.
    "clients",
    "trainers",
    "e2e",
    "browser",
    "benchmarks/test_overhead.py",
    "benchmarks/test_parity.py",
    "benchmarks/test_path.py",
    "benchmarks/test_processes.py",
    "benchmarks/test_servers.py",
    "benchmarks/test_soak.py",
    "client/test_example.py",
    "client/test_process.py",
    "client/test_readme.py",
    "deploy/test_k8s_build.py",
    "deploy/test_k8s_probes.py",
    "deploy/test_kserve_pod.py",
    "model/test_onnx.py",
    "model/zoo/test_transfer.py",
    "test_fork_server.py",
    "service/batch/test_job.py",
    "service/batch/test_ray_pool.py",
    "service/cli/test_*.py",
    "*/test_logs*.py",
    "*/test_compute_libraries.py",
    "*/test_exposition.py",
    "*/test_server_process.py",
    "*/test_tracing_process.py",
    "*/test_worker_process.py",
    "service/frontend/http/test_tls.py",
    "service/wire/test_curve.py",
    "*/test_settings.py",
    # Large pictures, batches of each size, and thousands of generated inputs.
    "*/test_batch_independence.py",
    "*/test_decode_memory.py",
    "*/test_largest_load.py",
    "*/test_detection_ops.py",
    "*/test_overlay.py",
    # A fresh service for each test, or hundreds of requests.
    "client/test_many.py",
    "*/test_error_tables.py",
    "*/test_metrics_refusals.py",
    "*/test_tracing.py",
)


@pytest.fixture(autouse=True)
def restored_logs() -> Iterator[None]:
    """Commands that run in this process configure its logs: the next test has its own again."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    """The whole service with the embedded models, shared by tests that do not change its state."""
    with running_service() as running:
        yield running


@pytest.fixture
def overrides(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The arguments of the test's marker `settings`, for fixtures that start a part of the service for one test."""
    marker = request.node.get_closest_marker("settings")
    return dict(marker.kwargs) if marker else {}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two for each core: more than half of the time a test waits, for processes, deadlines and files."""
    return 2 * (os.cpu_count() or 1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay until the end: the garbage collector need not look at them, then and later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files whose tests `-m` leaves out are not imported, which takes seconds in each process."""
    chosen = config.getoption("markexpr")
    if collection_path.suffix != ".py" or HERE not in collection_path.parents:
        return None
    names = {mark.name for mark in marks(collection_path.relative_to(HERE))}
    left_out = {
        "serial": "serial" not in names,
        "not serial": "serial" in names,
        "not serial and not slow": bool(names),
    }
    # None leaves the choice to others.
    return left_out.get(chosen) or None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Services find what a worker measures at its first start, if one of these tests may start any."""
    if any(item.get_closest_marker("slow") or item.get_closest_marker("serial") for item in session.items):
        from tests.kept_measurements import keep_measurements  # it imports torch

        keep_measurements(Path(os.environ[STATE_HOME], "convmlp"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in marks(item.path.relative_to(HERE)):
            item.add_marker(mark)


@cache
def marks(path: Path) -> tuple[pytest.MarkDecorator, ...]:
    """Of a file's tests; its path is relative to tests/."""
    table = ((pytest.mark.serial, SERIAL), (pytest.mark.slow, SLOW))
    return tuple(mark for mark, patterns in table if matches(path, patterns))


def matches(path: Path, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern matches this path, relative to tests/, or a folder above it."""
    return any(_expression(patterns).match(str(one)) for one in (path, *path.parents))


@cache
def _expression(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))
