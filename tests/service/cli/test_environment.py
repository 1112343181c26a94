"""Variables of the environment that are no settings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.app import app
from service.cli.environment import COMPOSE, OTHERS, unknown_variables
from service.settings import Settings

ROOT = Path(__file__).parents[3]
KNOWN = {f"CONVMLP_{name.upper()}" for name in Settings.model_fields} | OTHERS
PLACES = ("service", "docker", "deploy", "docs", "examples", "*.yml", "*.md", ".env.example", "Makefile")


@pytest.mark.parametrize("command", ["serve", "worker", "models list", "classify cat.jpg", "doctor"])
def test_an_unknown_variable_is_an_error(command: str) -> None:
    """As an unknown flag it is named, with the nearest one that exists."""
    ran = CliRunner().invoke(app, command.split(), env={"CONVMLP_HTPP_PORT": "9000"})
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == "convmlp: there is no setting CONVMLP_HTPP_PORT; did you mean CONVMLP_HTTP_PORT?\n"


@pytest.mark.parametrize("name", ["CONVMLP_FOO", "CONVMLP_ROLES"])
def test_an_unknown_variable_like_no_setting(name: str) -> None:
    """No setting is offered for the prefix alone, nor what only the service's own processes get."""
    assert unknown_variables({name: "1"}) == [f"there is no setting {name}; `convmlp serve --help` has all"]


def test_an_unknown_variable_does_not_hide_the_help() -> None:
    """The help of a command has the right names."""
    ran = CliRunner().invoke(app, ["classify", "--help"], env={"CONVMLP_ULR": "http://localhost:8000"})
    assert ran.exit_code == 0
    assert "CONVMLP_URL" in ran.stdout


def test_an_unknown_key_of_the_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named in the same way."""
    (tmp_path / "convmlp.toml").write_text("max_image_mpxs = 3\n")
    monkeypatch.chdir(tmp_path)
    ran = CliRunner().invoke(app, ["models", "list"])
    assert (ran.exit_code, ran.stdout) == (2, "")
    expected = "there is no setting max_image_mpxs, which convmlp.toml has; did you mean max_image_mpx?"
    assert ran.stderr == f"convmlp: {expected}\n"


def test_an_unknown_flag_is_an_error() -> None:
    """It is named in the same way."""
    ran = CliRunner().invoke(app, ["serve", "--http-prot", "9000"])
    assert ran.exit_code == 2
    assert ran.stderr.endswith("unrecognized arguments: --http-prot 9000; did you mean --http-port?\n")


def test_variables_of_kubernetes_and_docker_are_none_of_ours() -> None:
    """A service named convmlp-rest adds such variables to each container; a port's number is a wrong setting."""
    theirs = {
        "CONVMLP_REST_SERVICE_HOST": "10.0.0.1",
        "CONVMLP_REST_SERVICE_PORT_HTTP": "8000",
        "CONVMLP_REST_PORT": "tcp://10.0.0.1:8000",
        "CONVMLP_REST_PORT_8000_TCP_ADDR": "10.0.0.1",
        "CONVMLP_SERVICE_HOST": "10.0.0.1",
    }
    assert unknown_variables(theirs) == []
    assert len(unknown_variables({"CONVMLP_REST_PORT": "8000"})) == 1


def test_every_variable_that_the_project_names_is_known() -> None:
    """Those of the code, of deployments and of the documents, but for tests; and compose has those listed for it."""
    files = subprocess.run(
        ["git", "grep", "-hoE", r"\bCONVMLP_[A-Z][A-Z0-9_]*[A-Z0-9]\b", "--", *PLACES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    assert len(files) > 100
    assert {name for name in files if not name.startswith("CONVMLP_TEST_")} - KNOWN == set()
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(COMPOSE) <= set(re.findall(r"CONVMLP_[A-Z0-9_]+", example))
