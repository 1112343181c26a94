"""How deploy/k8s scales and survives: who scales what, who reaches which worker, what may be evicted."""

from __future__ import annotations

import math

import pytest
import yaml

from tests.deploy.k8s import COMPLETE, FRONT_ENDS, PARTS, ROOT, SERVICES, deployed, is_target, selects


@pytest.mark.parametrize("folder", SERVICES)
def test_front_ends_know_every_worker(folder: str) -> None:
    """Their address of workers is the name of the Service that has all of them, at the port where a worker listens."""
    there = deployed(folder)
    service = there.workload("worker")["spec"]["serviceName"]
    selector = there.one("Service", service)["spec"]["selector"]
    assert selects({"matchLabels": selector}, there.labels("worker"))
    for part in FRONT_ENDS:
        assert there.environment(part)["CONVMLP_WORKER_ADDRESS"] == f"dns://{service}:5555"
    assert there.environment("worker")["CONVMLP_WORKER_ADDRESS"] == "tcp://0.0.0.0:5555"


@pytest.mark.parametrize("folder", SERVICES)
def test_a_worker_has_a_name_before_it_is_ready(folder: str) -> None:
    """The Service that gives the names is headless, and does not wait for readiness: workers report their own."""
    there = deployed(folder)
    service = there.one("Service", there.workload("worker")["spec"]["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True


@pytest.mark.parametrize("folder", SERVICES)
def test_each_autoscaler_has_one_workload_to_itself(folder: str) -> None:
    """An autoscaler's target exists, has no other autoscaler, and sets no replicas, which applying would restore."""
    there = deployed(folder)
    for scaler in there.all("HorizontalPodAutoscaler"):
        (workload,) = (one for part in PARTS if is_target(one := there.workload(part), scaler))
        assert "replicas" not in workload["spec"]
        assert scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]
    scaled = [one["spec"]["scaleTargetRef"]["name"] for one in there.all("HorizontalPodAutoscaler")]
    assert len(scaled) == len(set(scaled))
    assert {f"convmlp-{part}" for part in FRONT_ENDS} <= set(scaled)


@pytest.mark.parametrize("folder", SERVICES)
@pytest.mark.parametrize("part", FRONT_ENDS)
def test_front_ends_are_scaled_by_the_cpu_that_they_ask_for(folder: str, part: str) -> None:
    """Utilization is a share of the request, so there is one, and the limit leaves room above the target."""
    there = deployed(folder)
    (metric,) = there.one("HorizontalPodAutoscaler", f"convmlp-{part}")["spec"]["metrics"]
    resources = there.container(part)["resources"]
    target = metric["resource"]["target"]["averageUtilization"] / 100 * float(resources["requests"]["cpu"])
    assert metric["resource"]["name"] == "cpu"
    assert target < float(resources["limits"]["cpu"])


@pytest.mark.parametrize("folder", SERVICES)
@pytest.mark.parametrize("part", PARTS)
def test_a_node_can_be_drained_without_an_outage(folder: str, part: str) -> None:
    """A budget always lets a pod go, and where there are several it leaves some; unready ones hold up nothing."""
    there = deployed(folder)
    budget = there.one("PodDisruptionBudget", f"convmlp-{part}")["spec"]
    fewest, _ = there.fewest_and_most(part)
    assert 1 <= budget["maxUnavailable"] <= math.ceil(fewest / 2)
    assert fewest - budget["maxUnavailable"] >= (part in FRONT_ENDS)
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("folder", SERVICES)
def test_a_rollout_of_front_ends_costs_no_capacity(folder: str) -> None:
    """A new pod is ready before an old one goes; of workers, one at a time, for a GPU has no room for two."""
    there = deployed(folder)
    for part in FRONT_ENDS:
        rolling = there.workload(part)["spec"]["strategy"]["rollingUpdate"]
        assert rolling["maxUnavailable"] == 0
        assert rolling["maxSurge"] >= 1
    assert "updateStrategy" not in there.workload("worker")["spec"]
    assert there.workload("worker")["spec"]["minReadySeconds"] >= 30


def test_each_pod_is_scraped_once_and_under_the_name_that_the_rules_know() -> None:
    """One endpoint of the PodMonitor fits each pod, and the jobs are those of compose's Prometheus."""
    there = deployed(COMPLETE)
    (monitor,) = there.all("PodMonitor")
    ports = [one["port"] for one in monitor["spec"]["podMetricsEndpoints"]]
    jobs = set()
    for part in PARTS:
        assert selects(monitor["spec"]["selector"], there.labels(part))
        assert len([one for one in there.container(part)["ports"] if one["name"] in ports]) == 1
        jobs.add(there.labels(part)[monitor["spec"]["jobLabel"]])
    compose = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert jobs == {one["job_name"] for one in compose["scrape_configs"]} - {"prometheus"}
