"""What schemas cannot see: that the objects of deploy/k8s fit each other, the images and the service."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import pytest
import typer.main

from model.zoo.catalogue import entry
from service.cli.app import app
from service.cli.health import LIVE, Part
from service.frontend.grpc.health import WATCHERS_S
from service.frontend.grpc.server import ABORT_S
from service.frontend.http.server import CANCELLED_ANSWERS_S
from service.observability.tracing import FLUSH_S
from service.settings import Settings
from tests.deploy.k8s import (
    COMPLETE,
    FRONT_ENDS,
    PARTS,
    PULL_MODEL,
    ROOT,
    SERVICES,
    container_of,
    deployed,
    pod_of,
    port_of,
    selects,
)
from tests.deploy.kustomize import Object

EVERY_PART = [(folder, part) for folder in SERVICES for part in PARTS]
NOT_OURS = {"NVIDIA_VISIBLE_DEVICES"}
"""Variables that are not settings."""


def settings_of(folder: str, part: str) -> Settings:
    """What a part reads from its environment."""
    variables = deployed(folder).environment(part)
    values: dict[str, Any] = {
        name.removeprefix("CONVMLP_").lower(): value for name, value in variables.items() if name not in NOT_OURS
    }
    return Settings(**values)


def workloads() -> list[Object]:
    (job,) = deployed(PULL_MODEL).all("Job")
    return [*(deployed(folder).workload(part) for folder, part in EVERY_PART), job]


@pytest.mark.parametrize(("folder", "part"), EVERY_PART)
def test_every_variable_is_a_setting(folder: str, part: str) -> None:
    """Every variable is a setting, and every value is valid for its part."""
    for name in deployed(folder).environment(part).keys() - NOT_OURS:
        assert name.removeprefix("CONVMLP_").lower() in Settings.model_fields, name
        assert name.startswith("CONVMLP_")
    settings_of(folder, part)


@pytest.mark.parametrize(("folder", "part"), EVERY_PART)
def test_selectors_meet_the_pods_that_they_are_for(folder: str, part: str) -> None:
    """The selectors of a workload, its Services, budget and policy select this part's pods and no others."""
    there = deployed(folder)
    selectors = [
        there.workload(part)["spec"]["selector"],
        there.one("PodDisruptionBudget", f"convmlp-{part}")["spec"]["selector"],
        there.one("NetworkPolicy", f"convmlp-{part}")["spec"]["podSelector"],
        *(
            {"matchLabels": one["spec"]["selector"]}
            for one in there.all("Service")
            if one["metadata"]["name"].startswith(f"convmlp-{part}")
        ),
        *(one["labelSelector"] for one in there.pod(part)["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert [other for other in PARTS if selects(selector, there.labels(other))] == [part]


@pytest.mark.parametrize(("folder", "part"), EVERY_PART)
def test_ports_are_where_the_part_listens(folder: str, part: str) -> None:
    """Ports of Services and probes are ports of the container, and the container's are those of its settings."""
    there, settings = deployed(folder), settings_of(folder, part)
    container = there.container(part)
    (wire,) = {address.rpartition(":")[2] for address in settings.worker_address}
    listens = {
        "worker": {"wire": int(wire), "metrics": settings.worker_metrics_port},
        "rest": {"http": settings.http_port},
        "grpc": {"grpc": settings.grpc_port, "metrics": settings.grpc_metrics_port},
    }[part]
    assert {one["name"]: one["containerPort"] for one in container["ports"]} == listens
    assert settings.host == "0.0.0.0"
    for one in there.all("Service"):
        if selects({"matchLabels": one["spec"]["selector"]}, there.labels(part)):
            for port in one["spec"]["ports"]:
                assert port["port"] == port_of(container, port["targetPort"])
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        for how in ("httpGet", "grpc", "tcpSocket"):
            if how in container[name]:
                port_of(container, container[name][how]["port"])


@pytest.mark.parametrize(("folder", "part"), EVERY_PART)
def test_what_runs_is_a_command_and_is_asked_about_itself(folder: str, part: str) -> None:
    """The container's words are a command of `convmlp`, and a probe that runs one asks `convmlp health` about it."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    container = deployed(folder).container(part)
    assert container["args"] == [part]
    assert part in commands
    asked = {
        name: probe["exec"]["command"]
        for name, probe in container.items()
        if name.endswith("Probe") and "exec" in probe
    }
    assert asked or part == "rest"
    for name, command in asked.items():
        assert command == ["convmlp", "health", *([] if name == "readinessProbe" else [LIVE]), part]
        assert "health" in commands
        assert part in list(Part)


@pytest.mark.parametrize(("folder", "part"), EVERY_PART)
def test_a_pod_has_time_to_end(folder: str, part: str) -> None:
    """A pod's grace period exceeds all that it does after SIGTERM by some seconds."""
    there = deployed(folder)
    before_s = there.container(part).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert (before_s > 0) == (part in FRONT_ENDS)
    drain_s = settings_of(folder, part).drain_timeout_ms / 1000
    last_words_s = max(CANCELLED_ANSWERS_S, WATCHERS_S + ABORT_S) + FLUSH_S
    assert there.pod(part)["terminationGracePeriodSeconds"] >= before_s + drain_s + last_words_s + 5


@pytest.mark.parametrize("workload", workloads(), ids=lambda one: one["metadata"]["name"])
def test_no_container_may_do_more_than_it_needs(workload: Object) -> None:
    """A pod is non-root with a read-only file system, without capabilities or tokens, as `restricted` asks."""
    pod, container = pod_of(workload), container_of(workload)
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "docker/Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert user
    assert pod["securityContext"] | {"fsGroupChangePolicy": ""} == {
        "runAsNonRoot": True,
        "runAsUser": int(user[1]),
        "runAsGroup": int(user[2]),
        "fsGroup": int(user[2]),
        "fsGroupChangePolicy": "",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    assert all("sizeLimit" in one["emptyDir"] for one in pod["volumes"] if "emptyDir" in one)


@pytest.mark.parametrize("workload", workloads(), ids=lambda one: one["metadata"]["name"])
def test_no_variable_comes_from_the_cluster(workload: Object) -> None:
    """Kubernetes sets no variables for Services: for convmlp-grpc it would set CONVMLP_GRPC_PORT, a setting's name."""
    assert pod_of(workload)["enableServiceLinks"] is False


@pytest.mark.parametrize("workload", workloads(), ids=lambda one: one["metadata"]["name"])
def test_the_cluster_reports_why_a_container_ended(workload: Object) -> None:
    """A part's last log lines, such as an unreadable bundle's name, are in the pod's status."""
    assert container_of(workload)["terminationMessagePolicy"] == "FallbackToLogsOnError"


@pytest.mark.parametrize("workload", workloads(), ids=lambda one: one["metadata"]["name"])
def test_volumes_that_are_mounted_are_there(workload: Object) -> None:
    """Each mount is of a volume of the pod, each volume is mounted, and a claim is one that is made."""
    pod, container = pod_of(workload), container_of(workload)
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["volumes"]}
    claims = {one["metadata"]["name"] for one in deployed(COMPLETE).all("PersistentVolumeClaim")}
    assert {
        one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one
    } <= claims


def test_files_that_settings_name_are_mounted() -> None:
    """Keys, certificates and models are in volumes, mounted read-only at the paths of the settings."""
    for part, names in {
        "worker": ["models_dir", "wire_key_file"],
        "rest": ["api_keys_file", "http_tls_certificate", "http_tls_key", "wire_key_file"],
        "grpc": ["api_keys_file", "wire_key_file", "grpc_tls_certificate", "grpc_tls_key"],
    }.items():
        settings = settings_of(COMPLETE, part)
        mounts = {one["mountPath"]: one for one in deployed(COMPLETE).container(part)["volumeMounts"]}
        for name in names:
            path = getattr(settings, name)
            mount = mounts.get(str(path)) or mounts[str(path.parent)]
            assert mount["readOnly"] is True


@pytest.mark.parametrize(("folder", "part"), EVERY_PART)
def test_the_wire_has_keys_or_is_declared_private(folder: str, part: str) -> None:
    """Every part accepts the workers' addresses: the complete overlay has a key file, the others allow having none."""
    settings = settings_of(folder, part)
    assert (settings.wire_key_file is not None) == (folder == COMPLETE)
    assert settings.insecure_wire == (folder != COMPLETE)


def test_images_are_those_that_compose_builds() -> None:
    """Each image has compose's name and tag, for this version of the project."""
    text = "".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("docker-compose.yml", "docker-compose.cpu.yml")
    )
    built = {
        name.replace("${CONVMLP_VERSION:-latest}", version("convmlp-serving"))
        for name in re.findall(r"image: (convmlp-serving/\S+)", text)
    }
    used = {container_of(one)["image"] for one in workloads()}
    assert used == built


def test_only_the_gpu_overlays_ask_for_a_gpu() -> None:
    """In the GPU overlays a worker requires a GPU and tolerates the taint of GPU nodes; elsewhere it has none."""
    for folder in SERVICES:
        there = deployed(folder)
        gpu = folder != "overlays/cpu"
        limits = there.container("worker")["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == ("1" if gpu else None)
        assert settings_of(folder, "worker").device == ("cuda" if gpu else "cpu")
        assert ("tolerations" in there.pod("worker")) == gpu


def test_the_job_pulls_a_published_model_into_the_store() -> None:
    """The job's command is `convmlp models pull` of a model of the catalogue, into the claim that workers read."""
    (job,) = deployed(PULL_MODEL).all("Job")
    container = container_of(job)
    *command, name = container["args"]
    models = typer.main.get_command(app).get_command(None, "models")  # type: ignore[attr-defined]
    assert command == ["models", "pull"]
    assert "pull" in models.commands
    assert entry(name).name == name
    assert name.replace("_", "-") in job["metadata"]["name"]
    (mount,) = (one for one in container["volumeMounts"] if one["name"] == "models")
    assert {"name": "CONVMLP_MODELS_DIR", "value": mount["mountPath"]} in container["env"]
