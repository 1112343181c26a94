from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from service.cli.app import app
from service.cli.later import LATER


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("classify", "Missing argument"),
        ("classify a.png --top-k 0", "top_k"),
        ("classify a.png --score-threshold 0.5", "No such option"),
        ("detect a.png --top-k 3", "No such option"),
        ("detect a.png --score-threshold 1.5", "score_threshold"),
        ("segment a.png --mask-format svg", "mask_format"),
        ("segment a.png --max-detections 3", "No such option"),
        ("classify a.png --url ftp://somewhere", "http"),
        ("classify a.png --timeout-ms 0", "greater than or equal to 1"),
        ("classify a.png --local --timeout-ms 5", "--local"),
        ("classify a.png --json --save out.png", "--json and --save"),
        ("classify - -", "stdin"),
        ("models list --models-dir /nowhere/at/all", "does not exist"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_done(arguments: str, why: str) -> None:
    """Exit status 2 and words on stderr; neither is a picture read nor a service asked."""
    ran = CliRunner().invoke(app, arguments.split())
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert why in ran.stderr


def test_a_wrong_setting_is_named() -> None:
    """A bad environment variable is told by the setting's name, with exit status 2."""
    ran = CliRunner().invoke(app, ["models", "list"], env={"CONVMLP_MAX_IMAGES": "many"})
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "setting max_images: " in ran.stderr


def test_the_command_line_itself_is_light() -> None:
    """What every process of the service imports, the worker's too, has neither HTTP's libraries nor torch in it."""
    heavy = {"torch", "fastapi", "httpx2", "cv2", "uvicorn", "numpy", "PIL"}
    script = f"import sys, service.cli.app; print({heavy} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"set()\n"


def test_a_health_check_imports_no_other_command() -> None:
    """Containers run it every few seconds: of the command line it imports only itself, and a front-end's no NumPy."""
    command = [sys.executable, "-X", "importtime", "-m", "service.cli", "health", "rest", "--http-port", "1"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    imported = {line.rpartition("|")[2].strip() for line in told.splitlines() if line.startswith("import time:")}
    assert "service.cli.health" in imported
    assert not imported & {"numpy", "zmq", *(place.partition(":")[0] for place in LATER.values())}


def test_help_tells_of_every_command() -> None:
    """All that there is, in one list; each with help of its own."""
    names = ["serve", "worker", "rest", "grpc", "health", *LATER]
    listed = CliRunner().invoke(app, ["--help"], env={"TERMINAL_WIDTH": "100"}).stdout
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("│ ") and line[2].islower()] == names
    for name in LATER:
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_the_nearest_command_is_named() -> None:
    """Of a word that is none, the framework names the command that is most like it."""
    ran = CliRunner().invoke(app, ["clasify"])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "Did you mean 'classify'?" in ran.stderr
