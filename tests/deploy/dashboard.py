"""The dashboard's queries, as Grafana asks them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.deploy.scraping import Prometheus, Series

GRAFANA = Path(__file__).parents[2] / "docker/grafana"
DASHBOARD = GRAFANA / "dashboards/convmlp.json"
TASKS = ("classify", "detect", "segment")
SHOWN_S = 60.0
"""The time shown, and over which rates are taken."""


def panels() -> list[dict[str, Any]]:
    """All that have queries."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if "targets" in panel]


def queries(panel: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What Grafana would ask for a panel, its variables replaced; and whether of this moment only."""
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", f"{SHOWN_S:g}s").replace("$__range", f"{SHOWN_S:g}s")
        for task in TASKS if "repeat" in panel else ("|".join(TASKS),):
            replaced = query.replace("$task", task)
            assert "$" not in replaced, replaced
            yield replaced, target["instant"]


def answers(prometheus: Prometheus, panel: dict[str, Any]) -> dict[str, list[Series]]:
    return {
        query: prometheus.instant(query) if instant else prometheus.range(query, SHOWN_S)
        for query, instant in queries(panel)
    }


def numbers(series: Series) -> list[float]:
    points = series["values"] if "values" in series else [series["value"]]
    return [float(value) for _, value in points if not math.isnan(float(value))]
