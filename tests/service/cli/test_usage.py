from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from service.cli.app import app


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
    script = "import sys, service.cli.app; print({'torch', 'fastapi', 'httpx', 'cv2', 'uvicorn'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"set()\n"
