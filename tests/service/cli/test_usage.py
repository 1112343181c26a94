from __future__ import annotations

import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from service.cli.app import LAZY_COMMANDS, PREDICTION, SERVICE, TOOLS, app
from service.cli.flags import GROUPS
from service.settings import Settings

PANELS = (SERVICE, PREDICTION, TOOLS)


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
        ("detect a.png --local --url http://localhost:1", "--url needs a service"),
        ("segment a.png --models-dir /tmp", "--models-dir needs --local"),
        ("analyze a.png --local --api-key secret", "--api-key needs a service"),
        ("eval data --model m --local --url http://localhost:1", "--url needs a service"),
        ("eval data --model m --local --concurrency 2", "--concurrency needs a service"),
        ("eval data --model m --data-format foo", "for '--data-format': 'foo' is not one of"),
        ("models export m m.pth --format foo", "for '--format': 'foo' is not one of"),
        ("models split pets@2 1:100", "names a version"),
        ("classify a.png --json --save out.png", "--json and --save"),
        ("classify - -", "stdin"),
        ("classify a.png --format coco", "--format coco is not one of table, csv, jsonl"),
        ("detect a.png --format xml", "--format xml is not one of table, csv, jsonl, coco"),
        ("detect a.png --format csv --json", "--format and --json exclude each other"),
        ("segment nothing-[is].here", "has no images"),
        ("analyze a.png --tasks fly", "'fly'"),
        ("analyze a.png --tasks detect --models fake_detect", "exclude each other"),
        ("analyze a.png --top-k 0", "top_k"),
        ("embed a.png", "Missing option '--out'"),
        ("embed a.png --out vectors.csv", ".npy, .parquet"),
        ("embed a.png --out vectors.npy --local --timeout-ms 5", "--local"),
        ("embed tests/service/cli --out vectors.npy", "has no images"),
        ("classify tests/service/cli/*.here", "the pattern"),
        ("watch nothing-is-here", "does not exist"),
        ("watch ftp://me:secret@camera/x", "ftp://camera/x has the scheme ftp"),
        ("watch . --fps 3", "--fps is for cameras"),
        ("watch . --save ./", "the folder that is watched"),
        ("watch http://camera/x --existing", "--existing is for a folder"),
        ("watch http://camera/x --fps 0", "--fps is 0"),
        ("watch http://camera/x --webhook camera", "--webhook: expected http"),
        ("watch http://camera/x --task classify --max-detections 5", "max_detections"),
        ("watch http://camera/x --url ftp://somewhere", "--url"),
        ("models list --models-dir /nowhere/at/all", "does not exist"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_done(arguments: str, why: str) -> None:
    """The exit status is 2 with a message on stderr; no image is read and no request is sent."""
    ran = CliRunner().invoke(app, arguments.split())
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert why in ran.stderr


def test_a_wrong_setting_is_named() -> None:
    """The message about a wrong environment variable has the setting's name; the exit status is 2."""
    ran = CliRunner().invoke(app, ["models", "list"], env={"CONVMLP_MAX_IMAGES": "many"})
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "setting max_images: " in ran.stderr


def test_the_command_line_itself_is_light() -> None:
    """Every process of the service imports it, the worker too: it imports neither HTTP libraries nor torch."""
    heavy = {"torch", "fastapi", "httpx2", "cv2", "uvicorn", "numpy", "PIL", "rich"}
    script = f"import sys, service.cli.app; print({heavy} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout == b"set()\n"


def test_a_health_check_imports_no_other_command() -> None:
    """Containers run it every few seconds: it imports no other command, and for a front-end no NumPy."""
    command = [sys.executable, "-X", "importtime", "-m", "service.cli", "health", "rest", "--http-port", "1"]
    log = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines() if line.startswith("import time:")}
    assert "service.cli.health" in imported
    assert not imported & {
        "numpy",
        "zmq",
        "rich",
        *(lazy.import_path.partition(":")[0] for lazy in LAZY_COMMANDS.values()),
    }


def test_help_lists_every_command() -> None:
    """Each command is in the help, and has a help of its own."""
    names = ["serve", "worker", "rest", "grpc", "health", "doctor"]
    names += [name for panel in PANELS for name, lazy in LAZY_COMMANDS.items() if lazy.panel == panel]
    listed = CliRunner().invoke(app, ["--help"], env={"TERMINAL_WIDTH": "100"}).stdout
    assert [line.split()[1] for line in listed.splitlines() if line.startswith("│ ") and line[2].islower()] == names
    for name in LAZY_COMMANDS:
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0


def test_the_nearest_command_is_named() -> None:
    """For an unknown command, the message suggests the most similar one."""
    ran = CliRunner().invoke(app, ["clasify"])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "Did you mean 'classify'?" in ran.stderr


def test_the_flags_of_serve_are_grouped() -> None:
    """Every setting is a flag in the group of its subject, and the usage line does not repeat them all."""
    shown = CliRunner().invoke(app, ["serve", "--help"]).stdout
    titles = [line.removesuffix(":") for line in shown.splitlines() if line.endswith(":") and line[0].isalpha()]
    assert titles == ["options", *GROUPS.values()]
    flags = re.findall(r"^  (--[a-z0-9-]+)", shown, re.MULTILINE)
    assert flags == [f"--{name.replace('_', '-')}" for name in Settings.model_fields]
    assert shown.splitlines()[0].endswith(" serve [--FLAG VALUE …]")


def test_defaults_are_written_as_a_user_writes_them() -> None:
    """The help shows a list of names with commas between, and no default where there is none."""
    shown = CliRunner().invoke(app, ["serve", "--help"]).stdout
    assert "(default: convmlp_pets_breed, convmlp_pets_heads, convmlp_pets_outline)" in " ".join(shown.split())
    assert "None" not in shown
    assert "()" not in shown


def test_a_conflict_of_settings_names_them() -> None:
    """A check across several settings prints its message alone, without all settings."""
    ran = CliRunner().invoke(app, ["serve", "--models", "some", "--model-weights", "other=1"])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == "convmlp: model_weights: 'other' is not a served model; served: some\n"
