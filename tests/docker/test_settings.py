"""What the compose files pass on to the containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli.parts import SERVE_ONLY, SETTINGS_OF

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"

SET_BY_IMAGE = {"host", "http_port", "grpc_port", "grpc_metrics_port", "worker_metrics_port", "models_dir"}
"""The host's ports are those of `CONVMLP_PUBLISH_…`, its folder of models is `CONVMLP_MODEL_STORE`."""
OF_OTHER_HOSTS = {"wire_key_file", "insecure_wire"}
"""The containers are on one host: docs/deployment.md, "Workers on other hosts"."""


@pytest.mark.parametrize("part", ["worker", "rest", "grpc"])
def test_every_setting_is_passed_on(part: str) -> None:
    """A variable of `.env` or of the shell reaches each container whose part reads it, and no other part's does.

    Files of secrets have a line to uncomment, with the secret's place in the container.
    """
    text = COMPOSE.read_text(encoding="utf-8").replace("# CONVMLP_", "CONVMLP_")
    service: dict[str, Any] = yaml.safe_load(text)["services"][part]
    passed = {name.removeprefix("CONVMLP_").lower() for name in service["environment"]}
    assert passed == SETTINGS_OF[part] - SERVE_ONLY - SET_BY_IMAGE - OF_OTHER_HOSTS


def test_every_variable_is_explained() -> None:
    """`.env.example` has each of them, but those that compose itself sets, and those of secrets."""
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    text = COMPOSE.read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    names = {name for part in ("worker", "rest", "grpc") for name in services[part]["environment"]}
    own = {"CONVMLP_WORKER_ADDRESS", "CONVMLP_SERVED_MODELS_FILE", "CONVMLP_STATE_DIR"}
    assert {name for name in names - own if f"#{name}=" not in example} == set()
