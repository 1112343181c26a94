"""What is in deploy/kserve, what KServe makes of it, and such a pod's container as a process of this machine."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import yaml

from model.bundle import CONFIG_FILE, EMBEDDED_DIR, WEIGHTS_FILE
from tests.deploy.k8s import ROOT
from tests.deploy.kustomize import Object, build
from tests.e2e.convmlp_process import RunningService, started

KSERVE = ROOT / "deploy/kserve"
RUNTIMES = ("cuda", "cpu")
"""Folders that make a ClusterServingRuntime each."""
EXTENSIONS = {
    *("minReplicas", "maxReplicas", "autoScaling", "deploymentStrategy", "storageUris", "model"),
}
"""Fields of a predictor that are KServe's own; all others are a pod's."""
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
FIRST, SECOND = "my_breeds", "my_breeds@2"
"""The models that the InferenceService mounts."""


@cache
def runtime(folder: str) -> Object:
    (one,) = build(KSERVE / folder)
    return one


@cache
def inference_service() -> Object:
    one: Object = yaml.safe_load((KSERVE / "inference-service.yaml").read_text(encoding="utf-8"))
    return one


def predictor() -> Object:
    found: Object = inference_service()["spec"]["predictor"]
    return found


def deployment(folder: str) -> Object:
    """The Deployment of the InferenceService with this runtime, as KServe 0.21 makes it in Standard mode.

    The pod has the runtime's fields and the predictor's; the first container has the model's, arguments after the
    runtime's, variables merged by name.
    """
    spec, service = runtime(folder)["spec"], inference_service()
    name = f"{service['metadata']['name']}-predictor"
    model = predictor()["model"]
    (container,) = spec["containers"]
    variables = {one["name"]: one for one in (*container["env"], *model.get("env", ()))}
    container = {
        **container,
        **{field: model[field] for field in ("resources",) if field in model},
        "args": [*container["args"], *model.get("args", ())],
        "env": list(variables.values()),
    }
    pod = {field: spec[field] for field in ("volumes", "tolerations") if field in spec}
    pod |= {field: value for field, value in predictor().items() if field not in EXTENSIONS}
    labels = {**spec["labels"], "app": f"isvc.{name}"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": labels["app"]}},
            "strategy": predictor()["deploymentStrategy"],
            "template": {
                "metadata": {"labels": labels, "annotations": spec["annotations"]},
                "spec": {**pod, "containers": [container]},
            },
        },
    }


def container_of(folder: str) -> Object:
    """The pod's one container."""
    (container,) = deployment(folder)["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def environment(container: Object) -> dict[str, str]:
    """The service's variables in a container: the image's, and those of the manifest, which win."""
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    image = dict(re.findall(r"^    (CONVMLP_\w+)=(\S+)", dockerfile, re.MULTILINE))
    return image | {one["name"]: one["value"] for one in container["env"] if one["name"].startswith("CONVMLP_")}


def make_models(folder: Path) -> None:
    """Bundles as KServe's mounts have them: one of links as in a volume of Kubernetes, one that is a link itself, as
    the files of an image are, to a folder beside `folder`. Nothing in them may be written."""
    for name, place in ((FIRST, folder / FIRST / "..data"), (SECOND, folder.parent / "image/models")):
        place.mkdir(parents=True)
        config = json.loads((EMBEDDED_DIR / "convmlp_pets_breed" / CONFIG_FILE).read_text(encoding="utf-8"))
        (place / CONFIG_FILE).write_text(json.dumps(config | {"name": name}), encoding="utf-8")
        (place / WEIGHTS_FILE).write_bytes((EMBEDDED_DIR / "convmlp_pets_breed" / WEIGHTS_FILE).read_bytes())
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        (folder / FIRST / file).symlink_to(Path("..data") / file)
    (folder / SECOND).symlink_to("../image/models")
    for path in (folder, *folder.rglob("*"), *(folder.parent / "image").rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@contextmanager
def running_pod(models: Path) -> Iterator[RunningService]:
    """The first container's process on free ports of this machine, without a GPU, with `models` as /mnt/models."""
    container = container_of("cpu")
    variables = {name: value.replace("/mnt/models", str(models)) for name, value in environment(container).items()} | {
        "CONVMLP_HOST": "127.0.0.1"
    }
    command, *flags = container["args"]
    ports = ("--http-port", "0", "--grpc-port", "0", "--worker-metrics-port", "0")
    with started(command, *ports, *flags, environment={**os.environ, **variables}) as service:
        ready = service.wait_for("ready", role="supervisor")
        service.url, service.grpc_address = ready["url"], ready["grpc_address"]
        yield service
