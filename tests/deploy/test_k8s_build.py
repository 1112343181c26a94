"""That deploy/k8s can be built, and that clusters take it."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.deploy.k8s import K8S, PULL_MODEL, ROOT, SERVICES, Deployed, deployed
from tests.deploy.kustomize import Object, build, read_objects

OPERATORS_KINDS = {"PodMonitor", "PrometheusRule"}
"""They are the Prometheus Operator's, of which Kubernetes has no schemas."""
VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest that docs/kubernetes.md names, and the newest whose schemas there are."""
VERSION = version("convmlp-serving")
MINE = "deploy/k8s/overlays/mine"
"""An overlay of a reader's own, by the name that docs/kubernetes.md gives it."""


@pytest.mark.parametrize("folder", [*SERVICES, PULL_MODEL])
def test_kubectl_builds_the_same(folder: str) -> None:
    """The objects that the other tests read are those that kubectl builds."""
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("there is no kubectl, whose `kustomize` is the real builder")
    assert _sorted(_built_by(kubectl, K8S / folder)) == _sorted(build(K8S / folder))


@pytest.mark.parametrize("kubernetes", VERSIONS)
@pytest.mark.parametrize("folder", [*SERVICES, PULL_MODEL])
def test_every_object_fits_its_schema(folder: str, kubernetes: str) -> None:
    """No field is missing, unknown or of another type, in the oldest and in the newest Kubernetes."""
    for one in deployed(folder).objects:
        if one["kind"] not in OPERATORS_KINDS:
            kubernetes_validate.validate(one, kubernetes, strict=True)


@pytest.mark.parametrize("folder", [*SERVICES, PULL_MODEL])
def test_objects_have_names_of_their_own_and_one_namespace(folder: str) -> None:
    """No object overwrites another, and each has a namespace, so that kubectl's current one does not matter."""
    objects = deployed(folder).objects
    names = [_name(one) for one in objects]
    assert len(names) == len(set(names))
    assert {one["metadata"].get("namespace") for one in objects if one["kind"] != "Namespace"} == {"convmlp"}


def test_the_rules_are_those_of_compose() -> None:
    """The PrometheusRule was made again since they changed there: `python deploy/k8s/prometheus_rule.py`."""
    script = runpy.run_path(str(K8S / "prometheus_rule.py"))
    assert script["PROMETHEUS_RULE"].read_text(encoding="utf-8") == script["generated"]()
    (rule,) = deployed("overlays/complete").all("PrometheusRule")
    rules = [yaml.safe_load(path.read_text(encoding="utf-8"))["groups"] for path in script["RULES"]]
    assert rule["spec"] == {"groups": [group for groups in rules for group in groups]}


def test_the_documentation_names_what_is_there() -> None:
    """Every path and every object of docs/kubernetes.md exists, but for the reader's own overlay."""
    text = (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
    paths = {path.rstrip("/.") for path in re.findall(r"\b(?:deploy|docker)/[\w./-]+", text)} - {MINE}
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    targets = set(re.findall(r"\b(?:statefulset|deployment|service|hpa|job)/([\w-]+)", text))
    known = {one["metadata"]["name"] for folder in (*SERVICES, PULL_MODEL) for one in deployed(folder).objects}
    assert targets
    assert targets <= known


def test_the_overlay_that_the_documentation_shows_works(tmp_path: Path) -> None:
    """In the folder that it names, the overlay builds, is valid and has its number of workers and its images."""
    (overlay,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/kubernetes.md").read_text(encoding="utf-8"), re.DOTALL)
    shutil.copytree(K8S, tmp_path / "deploy/k8s")
    folder = tmp_path / MINE
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(overlay, encoding="utf-8")
    there = Deployed(tuple(build(folder)))
    for one in there.objects:
        kubernetes_validate.validate(one, VERSIONS[-1], strict=True)
    fewest, _ = there.fewest_and_most("worker")
    assert fewest == 2
    assert there.container("worker")["image"] == f"registry.example.org/convmlp-serving/worker:{VERSION}-cuda"
    if kubectl := shutil.which("kubectl"):
        assert _sorted(_built_by(kubectl, folder)) == _sorted(list(there.objects))


@pytest.mark.parametrize(
    "line",
    [
        "commonLabels: {a: b}",
        "patches: [{target: {kind: Deployment, name: other}, patch: '[]'}]",
        "patches: [{target: {kind: Deployment, name: known}, patch: '[{op: replace, path: /spec/x, value: 1}]'}]",
        "configMapGenerator: [{name: other, behavior: merge, literals: [a=b]}]",
    ],
)
def test_the_tests_builder_refuses_what_it_does_not_know(tmp_path: Path, line: str) -> None:
    """Where there is no kubectl nothing is looked at that kubectl would build in another way, or not at all."""
    (tmp_path / "known.yaml").write_text("{apiVersion: apps/v1, kind: Deployment, metadata: {name: known}, spec: {}}")
    (tmp_path / "kustomization.yaml").write_text(f"resources: [known.yaml]\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) if "known}" not in line else "replace"):
        build(tmp_path)


def _built_by(kubectl: str, folder: Path) -> list[Object]:
    built = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return read_objects(built.stdout)


def _sorted(objects: list[Object]) -> list[Object]:
    return sorted(objects, key=_name)


def _name(one: dict[str, Any]) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]
