"""Tests of the images and the compose files need a Docker engine, and minutes: `make test-compose` runs them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compose.stack import FRONTEND, ON_CPU, PATIENCE_S, ROOT, SERVICES, WORKER, Stack, inspect, run, running

ASKED_FOR = "CONVMLP_TEST_COMPOSE"
BUILD_TIMEOUT_S = 1800.0
HERE = Path(__file__).parent
PYTHON_IMAGE = "python:3.11-slim-bookworm"
WITH_BINUTILS = "convmlp-test-python:binutils"
FIGURES = pytest.StashKey[list[str]]()
"""Sizes and times, printed at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT_S + 600))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for figure in config.stash.get(FIGURES, []):
        terminalreporter.write_line(figure)


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """Skip these tests unless they are asked for and there is a Docker engine."""
    if ASKED_FOR not in os.environ:
        pytest.skip("needs a Docker engine and minutes; `make test-compose` runs these")
    try:
        ran = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no docker here")
    if ran.returncode != 0:
        pytest.skip(f"there is no Docker engine: {ran.stderr.strip()}")


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> list[str]:
    """Lines to print at the end."""
    return request.config.stash.setdefault(FIGURES, [])


@pytest.fixture(scope="session")
def python_image(engine: None) -> str:  # noqa: ARG001
    """The base of the images: with binutils, where Debian's packages can be had."""
    install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils >/dev/null"
    words = ["docker", "build", "--quiet", "--tag", WITH_BINUTILS, "-"]
    text = f"FROM {PYTHON_IMAGE}\nRUN {install} && rm -rf /var/lib/apt/lists/*\n"
    built = subprocess.run(words, input=text, text=True, capture_output=True, check=False, timeout=PATIENCE_S)
    return WITH_BINUTILS if built.returncode == 0 else PYTHON_IMAGE


@pytest.fixture(scope="session")
def images(python_image: str, figures: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """The images for the CPU, built without network from the wheels of the locks."""
    wheels = Path(os.environ.get("CONVMLP_TEST_WHEELS") or tmp_path_factory.mktemp("wheels"))
    started_s = time.monotonic()
    run(sys.executable, str(ROOT / "docker" / "fetch.py"), "cpu", str(wheels), timeout_s=BUILD_TIMEOUT_S)
    fetched_s = time.monotonic()
    offline = {
        "CONVMLP_WHEELS": str(wheels),
        "CONVMLP_TEST_PYTHON_IMAGE": python_image,
        "PIP_NO_INDEX": "1",
    }
    build = Stack("convmlp-build", (*ON_CPU, "tests/compose/offline.yml"), offline)
    build.compose("build", timeout_s=BUILD_TIMEOUT_S)
    sizes = ", ".join(f"{name} {inspect(name)['Size'] / 1e6:.0f} MB" for name in (FRONTEND, WORKER))
    times = f"wheels fetched in {fetched_s - started_s:.0f} s, images built in {time.monotonic() - fetched_s:.0f} s"
    figures.append(f"{times}: {sizes}")


@pytest.fixture(scope="session")
def as_started() -> dict[str, dict[str, Any]]:
    """State of each service's container when the stack was up for the first time: tests restart some."""
    return {}


@pytest.fixture(scope="session")
def stack(images: None, figures: list[str], as_started: dict[str, dict[str, Any]]) -> Iterator[Stack]:  # noqa: ARG001
    """The service on the CPU, for tests that leave it running."""
    started_s = time.monotonic()
    with running(Stack("convmlp-test"), *SERVICES) as up:
        figures.append(f"up and healthy in {time.monotonic() - started_s:.0f} s")
        as_started.update({service: up.container(service)["State"] for service in SERVICES})
        yield up
