"""KServe's unmodified SDK for Python, over REST and gRPC, against the container of deploy/kserve's example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import CAT, Expected
from tests.clients.installs import only_if_asked_for, python_environment, run
from tests.deploy.kserve import FIRST, make_models, running_pod

pytestmark = only_if_asked_for

PROGRAM = Path(__file__).parent / "programs/kserve_sdk.py"


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program prints."""
    python = python_environment("kserve")
    models = tmp_path_factory.mktemp("mnt") / "models"
    make_models(models)
    with running_pod(models) as service:
        arguments = (service.url, service.grpc_address, FIRST, str(CAT))
        return dict(json.loads(run([str(python), str(PROGRAM), *arguments]).splitlines()[-1]))


def test_health(printed: dict[str, Any]) -> None:
    """The server is live and ready, and so is the model, over both transports."""
    assert printed["ready"] == printed["grpc_ready"] == [True, True, True]


@pytest.mark.parametrize("form", ["json", "binary", "grpc"])
def test_inference(printed: dict[str, Any], expected: Expected, form: str) -> None:
    """An encoded image gets REST's labels: as base64 in JSON, as a binary tensor, and over gRPC."""
    assert printed[form] == list(expected.labels)
    assert printed["id"] == "mine"


def test_errors_have_the_services_text(printed: dict[str, Any]) -> None:
    """The SDK shows the text of an error whose type is exactly application/json, as it is under /v2."""
    no_image, no_model = printed["errors"]
    assert "the image format is not supported" in no_image
    assert "there is no model 'nothing'" in no_model
