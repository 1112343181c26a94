"""The dashboard and the rules, asked of a real Prometheus that scrapes the real service."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from service.observability.gpu import HELP
from service.observability.metrics import GPU_INFO
from tests.deploy.dashboard import DASHBOARD, GRAFANA, TASKS, answers, numbers, panels
from tests.deploy.scraping import CONFIGURATION, Prometheus, Series, running_prometheus
from tests.deploy.topologies import KEY, ask, in_one, in_parts

ROUNDS = 3
TOPOLOGIES = {"in one": in_one, "in parts": in_parts}
SUPERVISED = {"convmlp_process_restarts_total", "convmlp_metrics_snapshots_dropped_total"}
"""Metrics that only exist under `convmlp serve`."""


@dataclass(frozen=True)
class PredictParams:
    """A service that was asked, and a Prometheus that saw it. `outcomes`: of how many requests. `absent`: the metrics
    that it cannot have. `shown`: by panel's title, the answers to its queries soon after the requests; a minute later
    rates are zero, and of these there is no percentile."""

    prometheus: Prometheus
    outcomes: dict[str, int]
    absent: set[str]
    shown: dict[str, dict[str, list[Series]]]


@pytest.fixture(scope="module", params=TOPOLOGIES)
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictParams]:
    if shutil.which("prometheus") is None:
        pytest.skip("there is no prometheus (Debian's package of that name)")
    folder = tmp_path_factory.mktemp("deployed")
    keys = folder / "keys"
    keys.write_text(f"tester {KEY}\n", encoding="ascii")
    with (
        TOPOLOGIES[request.param](keys) as deployed,
        running_prometheus(folder / "prometheus", deployed.targets) as prometheus,
    ):
        for targets in deployed.targets.values():
            for target in targets:
                prometheus.until(f'up{{instance="{target}"}} == 1')
        outcomes: dict[str, int] = {}
        for _ in range(ROUNDS):
            for outcome, count in ask(deployed).items():
                outcomes[outcome] = outcomes.get(outcome, 0) + count
            # A rate needs the figures before and after.
            prometheus.until(f"sum(convmlp_requests_total) == {sum(outcomes.values())}")
        prometheus.until("count(convmlp:request_duration_seconds:p99_5m > 0) == 3")
        prometheus.until("count(convmlp:slo_latency:burn_rate3d) == 3")
        shown = {str(panel["title"]): answers(prometheus, panel) for panel in panels()}
        yield PredictParams(prometheus, outcomes, set() if request.param == "in one" else SUPERVISED, shown)


def test_panels_have_their_places() -> None:
    """No two panels share an id or a place, all fit in the 24 columns, and each with queries has a description."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"]


def test_it_asks_the_provisioned_data_source() -> None:
    """Every query goes to the data source that is chosen in the dashboard, which by default is the provisioned one."""
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert [(one["type"], one["isDefault"]) for one in provisioned] == [("prometheus", True)]
    (variable,) = (
        one for one in json.loads(DASHBOARD.read_text())["templating"]["list"] if one["type"] == "datasource"
    )
    assert variable["query"] == "prometheus"
    (link,) = provisioned[0]["jsonData"]["exemplarTraceIdDestinations"]
    assert (link["name"], link["url"]) == ("trace_id", "$CONVMLP_TRACE_URL/$${__value.raw}")
    compose = yaml.safe_load((GRAFANA.parents[1] / "docker-compose.yml").read_text())
    assert "CONVMLP_TRACE_URL" in compose["services"]["grafana"]["environment"]
    chosen = {"type": "prometheus", "uid": f"${{{variable['name']}}}"}
    for panel in panels():
        assert [target["datasource"] for target in panel["targets"]] == [chosen] * len(panel["targets"])


def test_every_query_is_answered(asked: PredictParams) -> None:
    """Each query is valid and finds figures; those about a GPU or a supervisor are valid, and empty without
    one."""
    assert len(asked.shown) == len(panels())
    wrong = []
    for title, found in asked.shown.items():
        for query, series in found.items():
            names = set(re.findall(r"convmlp_\w+", query))
            absent = bool(names) and names <= {*HELP, GPU_INFO, *asked.absent}
            if not (series or absent):
                wrong.append(f"{title}: no data: {query}")
            if not all(map(numbers, series)):
                wrong.append(f"{title}: no number: {query}")
    assert wrong == []


def test_annotations_are_alerts(asked: PredictParams) -> None:
    """The query of the alerts that the graphs show is valid; a healthy service has none."""
    annotations = json.loads(DASHBOARD.read_text())["annotations"]["list"]
    (expression,) = (one["expr"] for one in annotations if "expr" in one)
    assert all("alertname" in series["metric"] for series in asked.prometheus.instant(expression))


def test_nothing_is_counted_twice_or_not_at_all(asked: PredictParams) -> None:
    """In each way to deploy, the sums over all scrapes are the requests and refusals that were sent."""
    prometheus, outcomes = asked.prometheus, asked.outcomes
    counted = {
        series["metric"]["outcome"]: float(series["value"][1])
        for series in prometheus.instant("sum by (outcome) (convmlp_requests_total)")
    }
    late = counted.pop("deadline-exceeded", 0) + counted.pop("overloaded", 0)
    assert counted | {"late": late} == outcomes
    refused = prometheus.value('sum(convmlp_rejected_total{reason=~"deadline|queue"})')
    assert refused == late
    assert prometheus.value('sum(convmlp_rejected_total{reason="credentials"})') == outcomes["unauthenticated"]
    by_transport = 'sum(convmlp_requests_total{{outcome="ok", transport="{}"}})'
    assert prometheus.value(by_transport.format("rest")) == prometheus.value(by_transport.format("grpc"))
    assert prometheus.value("sum(convmlp_request_duration_seconds_count)") == sum(outcomes.values())


def test_the_dashboard_shows_a_healthy_service(asked: PredictParams) -> None:
    """All models are ready, every front-end has its worker, there are no restarts and no alerts, and one version."""
    shown = {title: list(found.values()) for title, found in asked.shown.items()}

    def value(title: str, at: int = 0) -> float:
        (series,) = shown[title][at]
        return float(series["value"][1])

    assert (value("Ready models", 0), value("Ready models", 1)) == (3, 3)
    assert value("Workers up") == 1
    assert value("Worker restarts") == 0
    assert value("Parts down") == 0
    assert value("Failed") == 0
    assert value("Refused") > 0
    assert len(shown["Version"][0]) == 1
    firing = asked.prometheus.instant('ALERTS{alertstate="firing", severity="critical"}')
    assert firing == []


def test_rules_are_about_metrics_that_exist(asked: PredictParams) -> None:
    """Every rule is evaluated without an error, and each metric that one names was scraped or recorded, or
    belongs to another way to deploy."""
    known = asked.prometheus.metrics()
    groups = asked.prometheus.http.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    written = [
        rule
        for path in (CONFIGURATION / "rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]
    assert len(rules) == len(written) > 0
    for rule in rules:
        assert rule["health"] == "ok", rule
        for name in re.findall(r"\b(?:convmlp[a-z0-9_:]+|up)\b(?!\()", rule["query"]):
            assert name in known | asked.absent, f"{rule['name']}: {name}"


def test_labels_are_never_a_callers(asked: PredictParams) -> None:
    """All values of labels are of the closed sets or names of served models."""
    allowed = {
        "transport": {"rest", "grpc"},
        "task": {"", *TASKS},
        "model": {"", "convmlp_pets_breed", "convmlp_pets_heads", "convmlp_pets_outline"},
        "stage": {"decode", "queue", "infer", "post"},
    }
    for label, values in allowed.items():
        found = set(asked.prometheus.http.get(f"/api/v1/label/{label}/values").json()["data"])
        assert found <= values, label
