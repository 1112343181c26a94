"""The container of deploy/kserve's example in the image, confined as in its pod."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compose.stack import WORKER, eventually, run
from tests.deploy.kserve import FIRST, SECOND, container_of, environment, make_models

GET = "import sys, urllib.request as u; print(u.urlopen('http://127.0.0.1:8000' + sys.argv[1], timeout=10).status)"


@pytest.fixture(scope="module")
def name(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:  # noqa: ARG001
    """Of the container, with the models in a volume that cannot be written."""
    models = tmp_path_factory.mktemp("kserve") / "models"
    make_models(models)
    models.parent.chmod(0o755)
    container = container_of("cpu")
    context = container["securityContext"]
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    variables = [f"--env={name}={value}" for name, value in environment(container).items()]
    mounts = [f"--tmpfs={one['mountPath']}" for one in container["volumeMounts"]]
    confined = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges:true", f"--user={user}")
    words = (*confined, *mounts, f"--volume={models.parent}:/mnt:ro", *variables, WORKER, *container["args"])
    started = run("docker", "run", "--detach", *words).out.strip()
    try:
        yield started
    finally:
        run("docker", "rm", "--force", started)


def answers(name: str, path: str) -> bool:
    return run("docker", "exec", name, "python", "-c", GET, path, check=False).out.strip() == "200"


def test_the_container_of_the_example_serves_its_models(name: str) -> None:
    """With no writable folder but those that the manifest mounts, it is ready, and serves what is mounted."""
    eventually(lambda: answers(name, container_of("cpu")["readinessProbe"]["httpGet"]["path"]))
    for path in (f"/v2/models/{FIRST}/versions/1/ready", f"/v2/models/{SECOND.partition('@')[0]}/versions/2/ready"):
        assert answers(name, path)
