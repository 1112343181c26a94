"""Prometheus' configuration and rules, by its own tool; and what is written about them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "docker/prometheus"
TESTS = Path(__file__).parent / "alerts.yml"
RUNBOOK = ROOT / "docs/monitoring.md"


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool (Debian's package prometheus)")
    return subprocess.run(["promtool", *words], cwd=TESTS.parent, capture_output=True, text=True, check=False)


def alerts() -> dict[str, dict[str, Any]]:
    rules = (
        rule
        for path in (CONFIGURATION / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    )
    return {rule["alert"]: rule for rule in rules if "alert" in rule}


def test_the_configuration_is_valid() -> None:
    """promtool accepts the configuration and its rules."""
    checked = promtool("check", "config", CONFIGURATION / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_fire_when_they_should() -> None:
    """Alerts fire when they should, and do not when they should not; alerts.yml has the cases."""
    tested = promtool("test", "rules", TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_tested_both_ways() -> None:
    """Each alert has a case in which it fires and one in which it does not."""
    cases = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    assert set(cases) == {(name, fires) for name in alerts() for fires in (True, False)}


@pytest.mark.parametrize("name", alerts())
def test_every_alert_has_a_runbook(name: str) -> None:
    """Every alert has a summary, a description, a severity, and a section of the runbook that is not empty."""
    rule = alerts()[name]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert ROOT / path == RUNBOOK
    assert anchor == name.lower()
    section = re.search(rf"^#+ {name}\n(.*?)(?=^#|\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    assert len(section[1].split()) > 10
