"""The dashboard in the types that Grafana publishes of it on npm. `tests/deploy` asks its queries of Prometheus."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.installs import TIMEOUT_S, node_modules
from tests.deploy.dashboard import DASHBOARD

TYPES = Path(__file__).parent / "programs/dashboard.ts"
OPTIONS = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022")


def faults(dashboard: dict[str, Any], folder: Path) -> str:
    """TypeScript's errors in a dashboard; none if it has Grafana's types."""
    modules = node_modules("@grafana/schema", "typescript") / "node_modules"
    (folder / "node_modules").symlink_to(modules)
    program = folder / "dashboard.ts"
    literal = json.dumps(dashboard, indent=1)
    program.write_text(f"{TYPES.read_text(encoding='utf-8')}\nexport const dashboard: Checked = {literal};\n", "utf-8")
    command = ["node", str(modules / "typescript/bin/tsc"), *OPTIONS, str(program)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=folder)
    assert (ran.returncode == 0) == (ran.stdout == ""), ran.stderr
    return ran.stdout


def test_the_dashboard_has_grafanas_types(tmp_path: Path) -> None:
    """Each panel, option, threshold, override, variable and annotation has a name and a value that Grafana knows."""
    assert faults(json.loads(DASHBOARD.read_text()), tmp_path) == ""


@pytest.mark.parametrize(
    ("place", "name", "value", "fault"),
    [
        ("options", "textMode", "huge", "'\"huge\"' is not assignable"),
        ("options", "colour", "red", "'\"colour\"' does not exist"),
        ("gridPos", "w", "6", "'string' is not assignable to type 'number'"),
    ],
)
def test_a_wrong_option_is_found(tmp_path: Path, place: str, name: str, value: str, fault: str) -> None:
    """The check sees a value that Grafana does not know, an unknown name, and another type."""
    dashboard = json.loads(DASHBOARD.read_text())
    panel = next(panel for panel in dashboard["panels"] if panel["type"] == "stat")
    panel[place][name] = value
    assert fault in faults(dashboard, tmp_path)
