"""Label Studio itself, unmodified: it connects to the service and pre-annotates pictures."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.clients.conftest import CAT
from tests.clients.installs import only_if_asked_for, python_environment, run
from tests.e2e.convmlp_process import RunningService, running_service

pytestmark = [only_if_asked_for, pytest.mark.timeout(3000)]

PROGRAM = Path(__file__).parent / "programs/label_studio_project.py"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
START_S = 1200
"""It makes its database first, which takes minutes."""
CONFIG = """
<View>
  <Image name="img" value="$image"/>
  <RectangleLabels name="box" toName="img"><Label value="Cat"/><Label value="dog"/></RectangleLabels>
  <BrushLabels name="brush" toName="img"><Label value="Felis" predicted_values="cat"/></BrushLabels>
  <Choices name="breed" toName="img"><Choice value="Persian"/><Choice value="Bengal"/></Choices>
  <Choices name="quality" toName="img"><Choice value="sharp"/><Choice value="blurred"/></Choices>
</View>
"""


@pytest.fixture(scope="module")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a new Label Studio."""
    folder = tmp_path_factory.mktemp("label-studio")
    python = python_environment("label-studio")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_HOST": url,
        # As docs/annotation.md has it.
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "PYTHONPATH": "",
    }
    user = ("--username", "me@example.com", "--password", "a-long-secret", "--user-token", TOKEN)
    # The script names an interpreter at the place where it was installed first.
    script = str(python.parent / "label-studio")
    command = [str(python), script, "start", "--no-browser", "--port", str(port), *user]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        try:
            _wait_for(f"{url}/health", process)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        assert process.poll() is None, "Label Studio has ended"
        try:
            if httpx2.get(url, timeout=5).is_success:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise TimeoutError(url)


@pytest.fixture(scope="module")
def fetching(label_studio: str) -> Iterator[RunningService]:
    """A service that may fetch Label Studio's files."""
    host = label_studio.removeprefix("http://")
    with running_service("--fetch-urls", host, "--fetch-private-networks", "127.0.0.0/8") as service:
        yield service


@pytest.fixture(scope="module")
def project(label_studio: str, fetching: RunningService) -> dict[str, Any]:
    """What the program prints."""
    python = python_environment("label-studio")
    arguments = (label_studio, TOKEN, f"{fetching.url}/compat/labelstudio", CONFIG, str(CAT))
    return dict(json.loads(run([str(python), str(PROGRAM), *arguments]).splitlines()[-1]))


def test_pictures_are_annotated(project: dict[str, Any], fetching: RunningService) -> None:
    """Boxes, masks and choices are those of REST, for a picture that was uploaded and for one in the task itself. Masks
    are decoded by Label Studio's own code."""

    def asked(path: str) -> Any:  # noqa: ANN401
        answer = httpx2.post(f"{fetching.url}{path}", content=CAT.read_bytes(), timeout=60).json()["results"][0]
        return answer["image"], next(value for name, value in answer.items() if name != "image")[0]

    image, detection = asked("/detect")
    _, segment = asked("/segment?classes=cat")
    _, label = asked("/classify")
    uploaded, inline, _ = project["tasks"]
    assert uploaded == inline
    (prediction,) = uploaded
    box, brush, choice = prediction["regions"]
    assert box["value"]["rectanglelabels"] == ["Cat"]
    assert box["value"]["x"] == pytest.approx(100 * detection["box"]["xmin"] / image["width"], abs=0.1)
    bottom = box["value"]["y"] + box["value"]["height"]
    assert bottom == pytest.approx(100 * detection["box"]["ymax"] / image["height"], abs=0.1)
    assert brush["value"]["brushlabels"] == ["Felis"]
    assert brush["value"]["pixels"] == segment["area"]
    assert choice["value"] == {"choices": [label["label"]]}


def test_versions_and_failures(project: dict[str, Any]) -> None:
    """The models' version is the connection's, so that a task is asked for once; a picture that cannot be fetched gets
    no prediction, and costs the others nothing."""
    assert project["state"] == "Connected"
    assert [len(predictions) for predictions in project["tasks"]] == [1, 1, 0]
    assert project["tasks"][0][0]["model_version"] == project["version"]
