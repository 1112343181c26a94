"""`convmlp` in a forked process, beside `python -m service.cli`."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from tests.fork_server import run


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (("classify", "-", "--url", "http://127.0.0.1:1"), {}),
        (("models", "list", "--json"), {"CONVMLP_MODELS_DIR": "."}),
        (("models", "list"), {"CONVMLP_MAX_IMAGES": "many"}),
    ],
    ids=["no service", "a list", "a wrong variable"],
)
def test_a_forked_command_is_as_a_started_one(
    arguments: tuple[str, ...], variables: dict[str, str], tmp_path: Path
) -> None:
    """Its arguments, stdin, environment and folder are its own, and so are its output and its exit status."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-m", "service.cli", *arguments]
    with chdir(tmp_path):
        started = subprocess.run(command, input=b"no picture", env=environment, capture_output=True, check=False)
        forked = run(arguments, b"no picture", environment)
    assert forked == (started.returncode, started.stdout, started.stderr)
