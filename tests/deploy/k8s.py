"""What is in deploy/k8s, as tests ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.deploy.kustomize import Object, build

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy/k8s"
SERVICES = ("overlays/gpu", "overlays/cpu", "overlays/complete")
"""The folders that make a whole service each."""
PULL_MODEL = "pull-model"
COMPLETE = "overlays/complete"
PARTS = ("worker", "rest", "grpc")
FRONT_ENDS = ("rest", "grpc")


@dataclass(frozen=True)
class Deployed:
    """The objects of one folder."""

    objects: tuple[Object, ...]

    def all(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str) -> Object:
        (found,) = (one for one in self.all(kind) if one["metadata"]["name"] == name)
        return found

    def workload(self, part: str) -> Object:
        """What makes the pods of a part."""
        return self.one("StatefulSet" if part == "worker" else "Deployment", f"convmlp-{part}")

    def labels(self, part: str) -> dict[str, str]:
        """Of the part's pods."""
        labels: dict[str, str] = self.workload(part)["spec"]["template"]["metadata"]["labels"]
        return labels

    def pod(self, part: str) -> Object:
        return pod_of(self.workload(part))

    def container(self, part: str) -> Object:
        return container_of(self.workload(part))

    def environment(self, part: str) -> dict[str, str]:
        """The variables of a part's container; later ones win, as in Kubernetes."""
        container = self.container(part)
        variables: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            variables.update(self.one("ConfigMap", source["configMapRef"]["name"])["data"])
        return variables | {one["name"]: one["value"] for one in container.get("env", ())}

    def fewest_and_most(self, part: str) -> tuple[int, int]:
        """How many pods a part has."""
        workload = self.workload(part)
        if "replicas" in workload["spec"]:
            return workload["spec"]["replicas"], workload["spec"]["replicas"]
        (scaler,) = (one for one in self.all("HorizontalPodAutoscaler") if is_target(workload, one))
        return scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]


@cache
def deployed(folder: str) -> Deployed:
    return Deployed(tuple(build(K8S / folder)))


def pod_of(workload: Object) -> Object:
    pod: Object = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Object) -> Object:
    (container,) = pod_of(workload)["containers"]
    assert isinstance(container, dict)
    return container


def port_of(container: Object, port: str | int) -> int:
    """The number of a container's port, which must be among those that it names."""
    (number,) = (one["containerPort"] for one in container["ports"] if port in (one["name"], one["containerPort"]))
    return int(number)


def is_target(workload: Object, scaler: Object) -> bool:
    """Whether it is this workload that an autoscaler scales."""
    return bool(
        scaler["spec"]["scaleTargetRef"]
        == {"apiVersion": workload["apiVersion"], "kind": workload["kind"], "name": workload["metadata"]["name"]}
    )


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector meets these labels."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", ())
    assert all(one["operator"] == "In" for one in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in expressions
    )
