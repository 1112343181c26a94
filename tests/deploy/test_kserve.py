"""deploy/kserve, as it is written: its fields are KServe's, what KServe makes of it is Kubernetes', and all fit."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from model.bundle import EMBEDDED_DIR, BundleConfig
from service.settings import Settings
from service.supervision.supervisor import KILL_GRACE_S
from tests.deploy.k8s import ROOT, port_of, selects
from tests.deploy.kserve import (
    FIRST,
    KSERVE,
    PROBES,
    RUNTIMES,
    SECOND,
    container_of,
    deployment,
    environment,
    inference_service,
    predictor,
    runtime,
)
from tests.deploy.kserve_schema import problems
from tests.deploy.kustomize import Object, read_objects

VERSIONS = ("1.30", kubernetes_validate.latest_version())
TYPES = {"ClusterServingRuntime": "V1alpha1ClusterServingRuntime", "InferenceService": "V1beta1InferenceService"}
DEFAULT_GRACE_S = 30
"""Kubernetes' own, of a pod whose InferenceService has none."""


def settings_of(folder: str) -> Settings:
    """What the service reads from its container's variables."""
    values: dict[str, Any] = {
        name.removeprefix("CONVMLP_").lower(): value for name, value in environment(container_of(folder)).items()
    }
    assert values.keys() <= Settings.model_fields.keys()
    return Settings(**values)


@pytest.mark.parametrize("folder", RUNTIMES)
def test_kubectl_builds_the_same(folder: str) -> None:
    """The objects that the other tests read are those that kubectl builds."""
    if (kubectl := shutil.which("kubectl")) is None:
        pytest.skip("there is no kubectl, whose `kustomize` is the real builder")
    command = [kubectl, "kustomize", str(KSERVE / folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert read_objects(built) == [runtime(folder)]


@pytest.mark.parametrize("one", [*map(runtime, RUNTIMES), inference_service()], ids=lambda one: one["metadata"]["name"])
def test_every_field_is_kserves(one: Object) -> None:
    """No field is unknown to KServe, missing or of another type."""
    assert list(problems(one, TYPES[one["kind"]])) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda spec: spec["storageUris"][0].pop("uri"), ".spec.predictor.storageUris[0].uri: missing"),
        (lambda spec: spec.update(replicas=1), ".spec.predictor.replicas: there is no such field"),
        (lambda spec: spec.update(maxReplicas="4"), ".spec.predictor.maxReplicas: int is expected"),
    ],
)
def test_a_wrong_field_is_found(change: Callable[[Object], object], problem: str) -> None:
    """A field that is missing, unknown or of another type is reported: the test above can fail."""
    one = copy.deepcopy(inference_service())
    change(one["spec"]["predictor"])
    assert list(problems(one, TYPES[one["kind"]])) == [problem]


@pytest.mark.parametrize("kubernetes", VERSIONS)
@pytest.mark.parametrize("folder", RUNTIMES)
def test_kubernetes_takes_what_kserve_makes(folder: str, kubernetes: str) -> None:
    """The Deployment and the autoscaler's behaviour fit their schemas, in the oldest and the newest Kubernetes."""
    made = deployment(folder)
    kubernetes_validate.validate(made, kubernetes, strict=True)
    scaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": made["metadata"],
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": made["metadata"]["name"]},
            "maxReplicas": predictor()["maxReplicas"],
            "behavior": predictor()["autoScaling"]["behavior"],
        },
    }
    kubernetes_validate.validate(scaler, kubernetes, strict=True)


@pytest.mark.parametrize("folder", RUNTIMES)
def test_ports_are_where_the_service_listens(folder: str) -> None:
    """HTTP is the first port, the Service's port 80; gRPC has the name of HTTP/2 without TLS; probes ask HTTP."""
    container, settings = container_of(folder), settings_of(folder)
    ports = [(one["name"], one["containerPort"]) for one in container["ports"]]
    assert ports == [("http1", settings.http_port), ("h2c", settings.grpc_port)]
    assert settings.host == "0.0.0.0"
    assert {container[name]["httpGet"]["port"] for name in PROBES} == {settings.http_port}
    annotations = runtime(folder)["spec"]["annotations"]
    assert annotations["prometheus.kserve.io/port"] == str(settings.http_port)


@pytest.mark.parametrize("folder", RUNTIMES)
def test_a_pod_starts_a_worker_for_each_gpu(folder: str) -> None:
    """No address and no number of workers is given, so that `serve` counts GPUs; the pod has some, or sees none."""
    settings, limits = settings_of(folder), container_of(folder)["resources"]["limits"]
    assert (settings.worker_address, settings.workers) == ((), 0)
    assert settings.device == folder
    assert limits.get("nvidia.com/gpu") == {"cuda": "1", "cpu": None}[folder]
    assert ("tolerations" in runtime(folder)["spec"]) == (folder == "cuda")


@pytest.mark.parametrize("folder", RUNTIMES)
def test_models_are_mounted_where_the_store_is(folder: str) -> None:
    """Each mount is a folder of the store with a model's name, and each model is mounted or embedded."""
    settings = settings_of(folder)
    mounts = [Path(one["mountPath"]) for one in predictor()["storageUris"]]
    assert {mount.parent for mount in mounts} == {settings.models_dir}
    assert [mount.name for mount in mounts] == [FIRST, SECOND]
    embedded = {path.name for path in EMBEDDED_DIR.iterdir()}
    assert set(settings.models) <= embedded | {FIRST, SECOND}
    assert settings.splits


@pytest.mark.parametrize("folder", RUNTIMES)
def test_the_service_names_the_runtime(folder: str) -> None:
    """The runtime supports the InferenceService's format and protocol; the format's version is a bundle's."""
    one, model = runtime(folder), predictor()["model"]
    assert model["runtime"] in {runtime(name)["metadata"]["name"] for name in RUNTIMES}
    assert one["metadata"]["name"] == f"convmlp-{folder}"
    assert model["modelFormat"] in one["spec"]["supportedModelFormats"]
    assert model["modelFormat"]["version"] == str(BundleConfig.model_fields["format"].default)
    assert model["protocolVersion"] in one["spec"]["protocolVersions"]
    assert container_of(folder)["image"] == f"convmlp-serving/worker:{version('convmlp-serving')}-{folder}"


@pytest.mark.parametrize("folder", RUNTIMES)
def test_a_pod_has_time_to_end(folder: str) -> None:
    """A pause and a drain fit into the default grace period; the example's has room for parts that hang, too."""
    pause_s = container_of(folder)["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = settings_of(folder).drain_timeout_ms / 1000
    assert pause_s + drain_s + KILL_GRACE_S < DEFAULT_GRACE_S
    assert pause_s + 2 * (drain_s + KILL_GRACE_S) < predictor()["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("folder", RUNTIMES)
def test_no_container_may_do_more_than_it_needs(folder: str) -> None:
    """The container is what the Pod Security Standard `restricted` asks for, whatever the InferenceService has."""
    context = container_of(folder)["securityContext"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "docker/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert user
    assert context == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsGroup": int(user[2]),
        "runAsNonRoot": True,
        "runAsUser": int(user[1]),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod = deployment(folder)["spec"]["template"]["spec"]
    assert {one["name"] for one in container_of(folder)["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False


def test_keda_gets_a_target() -> None:
    """The target is `value`, all that KServe passes on to KEDA, and lies within a worker's queue."""
    (metric,) = predictor()["autoScaling"]["metrics"]
    target = metric["external"]["target"]
    assert inference_service()["metadata"]["annotations"]["serving.kserve.io/autoscalerClass"] == "keda"
    assert target.keys() == {"type", "value"}
    assert target["type"] == "Value"
    assert 0 < int(target["value"]) < Settings().max_queue_images
    assert predictor()["minReplicas"] < predictor()["maxReplicas"]
    assert f'pod=~"{deployment("cpu")["metadata"]["name"]}-.*"' in metric["external"]["metric"]["query"]


@pytest.mark.parametrize("folder", RUNTIMES)
def test_prometheus_finds_the_pods(folder: str) -> None:
    """The PodMonitor selects the pods, at their HTTP port, under the job that the rules know for a whole service."""
    monitor = yaml.safe_load((KSERVE / "pod-monitor.yaml").read_text(encoding="utf-8"))["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    annotations = runtime(folder)["spec"]["annotations"]
    assert selects(monitor["selector"], runtime(folder)["spec"]["labels"])
    assert port_of(container_of(folder), endpoint["port"]) == int(annotations["prometheus.kserve.io/port"])
    assert endpoint["path"] == annotations["prometheus.kserve.io/path"]
    compose = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    jobs = {one["job_name"] for one in compose["scrape_configs"]}
    assert {one["replacement"] for one in endpoint["relabelings"] if one["targetLabel"] == "job"} < jobs


def test_the_documentation_names_what_is_there() -> None:
    """Every path and object of docs/kserve.md exists."""
    text = (ROOT / "docs/kserve.md").read_text(encoding="utf-8")
    paths = {path.rstrip("/.") for path in re.findall(r"\b(?:deploy|docker|examples)/[\w./-]+", text)}
    assert {f"deploy/kserve/{folder}" for folder in RUNTIMES} < paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    name = inference_service()["metadata"]["name"]
    assert set(re.findall(r"\b(?:inferenceservice|service)/([\w-]+)", text)) == {name, f"{name}-predictor"}
