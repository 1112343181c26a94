"""Installs clients from PyPI and npm, in pinned versions, each into a folder of its own that later runs use again.

They are no part of the project's own environment: their dependencies would conflict with its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".clients"
TIMEOUT_S = 400.0
INSTALL_TIMEOUT_S = 1200.0
ASKED_FOR = "CONVMLP_TEST_CLIENTS"
UNREACHABLE = re.compile(
    "ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|NewConnectionError|Connection refused|Name or service not known"
    "|Temporary failure in name resolution|timed out"
)
"""In what npm or pip writes."""

PYTHON = {
    # The others are what the service's client needs.
    "cvat": [
        "cvat-cli==2.80.0",
        "cvat-sdk==2.80.0",
        "httpx2==2.16.2",
        "msgspec==0.23.0",
        "numpy==2.4.6",
        "pillow==13.0.0",
    ],
    "label-studio": ["label-studio==1.23.2", "label-studio-sdk==2.1.2"],
    "deepstack": ["deepstack-sdk==0.2.1", "deepstack-python==0.9"],
    "inference-sdk": ["inference-sdk==1.8.3"],
    "kserve": ["kserve==0.21.0"],
    "moto": ["moto[server,s3]==5.2.5"],
    "openapi-python-client": ["openapi-python-client==0.29.1"],
    "openapi-spec-validator": ["openapi-spec-validator==0.9.0"],
    # inference-sdk requires an older one.
    "supervision": ["supervision==0.31.2"],
    # The others are what a generated Python client needs.
    "openapi-generator": [
        "openapi-generator-cli==7.26.0",
        "pydantic==2.14.4",
        "python-dateutil==4.0.0",
        "urllib3==2.8.0",
    ],
}
"""What each environment has."""
NPM = {
    "@grafana/schema": "13.2.3",
    "@huggingface/inference": "4.13.30",
    "@types/node": "20.19.24",
    "lighthouse": "12.8.2",
    "typescript": "5.9.3",
}


only_if_asked_for = pytest.mark.skipif(
    ASKED_FOR not in os.environ, reason="installs large packages; `make test-clients` runs these"
)


def tool(name: str) -> str:
    """The path of a program of this machine; skips the test where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def python_environment(name: str) -> Path:
    """The interpreter of the virtual environment of this name in `PYTHON`."""
    requirements = PYTHON[name]

    def install(folder: Path) -> None:
        run([sys.executable, "-m", "venv", str(folder)])
        _install([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *requirements])

    return _once(json.dumps(requirements), install) / "bin/python"


def python_packages(*requirements: str) -> Path:
    """A folder of these packages and of none that they require, for PYTHONPATH beside this environment's own."""

    def install(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        _install([*command, *requirements])

    return _once(" ".join(requirements), install)


def node_modules(*names: str) -> Path:
    """A folder in whose `node_modules` are these packages of `NPM`."""
    versions = {name: NPM[name] for name in names}

    def install(folder: Path) -> None:
        folder.mkdir()
        (folder / "package.json").write_text(json.dumps({"private": True, "dependencies": versions}), encoding="utf-8")
        _install([tool("npm"), "install", "--no-audit", "--no-fund", "--ignore-scripts"], folder)

    tool("node")
    return _once(json.dumps(versions), install)


def run(
    command: list[str], folder: Path | None = None, *, environment: Mapping[str, str] | None = None, text: str = ""
) -> str:
    """What a command that succeeds prints. `text` is its standard input; `environment` is added to this process's."""
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **(environment or {})},
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ran.returncode == 0, f"{command}:\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def _install(command: list[str], folder: Path | None = None) -> None:
    """Skips the test where the registry cannot be reached."""
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if ran.returncode and UNREACHABLE.search(ran.stderr):
        pytest.skip(f"the registry is unreachable: {ran.stderr.strip()[-200:]}")
    assert ran.returncode == 0, f"{command}:\n{ran.stdout}\n{ran.stderr}"


def _once(key: str, install: Callable[[Path], None]) -> Path:
    """The folder that `install` filled for this key, in this run or an earlier one.

    It gets its name once it is complete, so that an interrupted installation is not used, and tests that run side by
    side do not disturb each other.
    """
    folder = FOLDER / hashlib.sha256(f"{sys.version} {key}".encode()).hexdigest()[:16]
    if not folder.exists():
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER, ignore_cleanup_errors=True) as scratch:
            made = Path(scratch) / "made"
            install(made)
            try:
                made.rename(folder)
            except OSError:
                assert folder.exists()  # another process was faster
    return folder
