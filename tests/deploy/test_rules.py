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
TESTS = tuple(Path(__file__).parent / name for name in ("alerts.yml", "slo.yml"))
RUNBOOKS = ROOT / "docs/runbooks"
SECTIONS = ("What it means", "How to see it", "What to do")


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool (Debian's package prometheus)")
    return subprocess.run(["promtool", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for path in (CONFIGURATION / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def test_the_configuration_is_valid() -> None:
    """promtool accepts the configuration and its rules."""
    checked = promtool("check", "config", CONFIGURATION / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_fire_when_they_should() -> None:
    """Alerts fire when they should, and do not when they should not; alerts.yml and slo.yml have the cases."""
    tested = promtool("test", "rules", *TESTS)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_tested_both_ways() -> None:
    """Each alert has a case in which it fires and one in which it does not."""
    cases = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    assert set(cases) == {(name, fires) for name in alerts() for fires in (True, False)}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    """Every alert has a summary, a description, a severity and a page; no page is left of an alert that was removed."""
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, name
        assert ROOT / rule["annotations"]["runbook_url"] == RUNBOOKS / f"{name}.md"
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == alerts().keys()


@pytest.mark.parametrize("name", alerts())
def test_a_runbook_has_its_sections(name: str) -> None:
    """A page has what its alert means, how to see it and what to do, and its links lead to pages that exist."""
    text = (RUNBOOKS / f"{name}.md").read_text()
    title, *sections = re.split(r"^#+ (.+)\n", text, flags=re.MULTILINE)[1:]
    assert title == name
    assert tuple(sections[1::2]) == SECTIONS
    assert all(len(section.split()) >= 4 for section in sections[2::2])
    assert all((RUNBOOKS / link).is_file() for link in re.findall(r"\]\(([^)#]+)", text))


def test_queries_of_runbooks_are_valid(tmp_path: Path) -> None:
    """Prometheus accepts each query of a runbook, and the service has the metrics that they name."""
    queries = [
        query
        for page in sorted(RUNBOOKS.glob("*.md"))
        for block in re.findall(r"```promql\n(.*?)```", page.read_text(), re.DOTALL)
        for query in block.splitlines()
    ]
    assert len(queries) > len(alerts())
    metrics = set(re.findall(r"`([a-z_]+)(?:\{[^`]*)?`", (ROOT / "docs/monitoring.md").read_text()))
    named = {name for query in queries for name in re.findall(r"\bconvmlp_(\w+?)(?:_bucket)?\b", query)}
    assert named <= metrics
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert {name for query in queries for name in re.findall(r"\bconvmlp:[\w:]+", query)} <= recorded
    file = tmp_path / "queries.yml"
    file.write_text(
        yaml.safe_dump(
            {"groups": [{"name": "runbooks", "rules": [{"record": "a:query", "expr": one} for one in queries]}]}
        )
    )
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr
