"""Who may reach what, by the NetworkPolicies of deploy/k8s."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.deploy.k8s import FRONT_ENDS, PARTS, PULL_MODEL, SERVICES, Deployed, deployed, selects
from tests.deploy.kustomize import Object

WIRE = 5555


@dataclass(frozen=True)
class Peer:
    """A pod that calls: its labels, and its namespace."""

    labels: dict[str, str]
    namespace: str = "convmlp"


STRANGER = Peer({"app": "other"})
FAR_STRANGER = Peer({"app": "other"}, "default")
PROMETHEUS = Peer({"app.kubernetes.io/name": "prometheus"}, "monitoring")


def may_reach(there: Deployed, peer: Peer, part: str, port: int) -> bool:
    """What a plugin that enforces the policies would decide."""
    policies = [one["spec"] for one in there.all("NetworkPolicy")]
    meant = [one for one in policies if selects(one["podSelector"], there.labels(part))]
    return not meant or any(_admits(rule, peer, port) for one in meant for rule in one["ingress"])


def _admits(rule: Object, peer: Peer, port: int) -> bool:
    return port in [one["port"] for one in rule["ports"]] and (
        "from" not in rule or any(_is(one, peer) for one in rule["from"])
    )


def _is(source: Object, peer: Peer) -> bool:
    (how, selector), *more = source.items()
    assert not more
    match how:
        case "podSelector":  # of the policy's own namespace
            return peer.namespace == "convmlp" and selects(selector, peer.labels)
        case "namespaceSelector":
            return selects(selector, {"kubernetes.io/metadata.name": peer.namespace})
        case _:
            raise ValueError(how)


@pytest.mark.parametrize("folder", SERVICES)
def test_only_front_ends_reach_the_wire(folder: str) -> None:
    """The worker has no authentication, so no other pod, look-alike elsewhere or Prometheus reaches its socket."""
    there = deployed(folder)
    (job,) = deployed(PULL_MODEL).all("Job")
    for part in FRONT_ENDS:
        assert may_reach(there, Peer(there.labels(part)), "worker", WIRE)
        assert not may_reach(there, Peer(there.labels(part), "default"), "worker", WIRE)
    for peer in (
        STRANGER,
        FAR_STRANGER,
        PROMETHEUS,
        Peer(there.labels("worker")),
        Peer(job["spec"]["template"]["metadata"]["labels"]),
    ):
        assert not may_reach(there, peer, "worker", WIRE)


@pytest.mark.parametrize("folder", SERVICES)
@pytest.mark.parametrize("part", PARTS)
def test_prometheus_reaches_the_metrics(folder: str, part: str) -> None:
    """Prometheus reaches the metrics port of every part."""
    there = deployed(folder)
    (port,) = (one["containerPort"] for one in there.container(part)["ports"] if one["name"] in ("metrics", "http"))
    assert may_reach(there, PROMETHEUS, part, port)


@pytest.mark.parametrize("folder", SERVICES)
def test_callers_reach_what_is_theirs_and_no_more(folder: str) -> None:
    """REST and gRPC are reached from anywhere; the metrics ports only from Prometheus' namespace."""
    there = deployed(folder)
    for peer in (STRANGER, FAR_STRANGER):
        reached = {
            (part, one["containerPort"])
            for part in PARTS
            for one in there.container(part)["ports"]
            if may_reach(there, peer, part, one["containerPort"])
        }
        assert reached == {("rest", 8000), ("grpc", 8001)}
