"""The files of a deployment on Ray, without Ray: deploy/ray/, and what `convmlp cluster` refuses."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from service.cluster.config_file import DEFAULT_PORT, InvalidConfig, read_config
from service.cluster.environment import BUFFER_BYTES, node_environment
from service.cluster.node import Node
from tests.waiting import until

RAY = Path(__file__).parents[3] / "deploy/ray"


def test_the_manifests_describe_one_deployment() -> None:
    """serve.yaml and the RayService describe the same valid deployment, and the pods have a node's environment."""
    on_ray, on_kubernetes = (read_config(RAY / name) for name in ("serve.yaml", "rayservice.yaml"))
    assert on_ray == on_kubernetes
    assert on_ray.port == DEFAULT_PORT
    service = yaml.safe_load((RAY / "rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert {one["name"]: one["value"] for one in container["env"]} == node_environment()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"serve": on_ray.port, "grpc": on_ray.settings.front_end_settings.grpc_port}
    gpus = float(container["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus >= max(group.gpus for group in on_ray.settings.groups)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("applications: [", "is no YAML"),
        ("- a", "no Serve config"),
        ("applications: []", "no Serve config"),
        ("applications: [{import_path: other.app:build}]", "no Serve config"),
        (
            "applications: [{import_path: 'service.cluster.app:build', args: {front_ends: 0}}]",
            "front_ends: Input should",
        ),
        (
            "applications: [{import_path: 'service.cluster.app:build', args: {groups: [{gpus: 3}]}}]",
            "one GPU at the most",
        ),
        ("{kind: RayService, spec: {}}", "no Serve config"),
    ],
)
def test_a_wrong_file_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    """The error names the file and what is wrong in it."""
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(InvalidConfig, match=reason) as caught:
        read_config(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The error is the system's."""
    with pytest.raises(InvalidConfig, match="No such file"):
        read_config(tmp_path / "none.yaml")


def test_a_node_is_started_as_head_or_joins_one() -> None:
    """The first machine is the head; what an operator has in the environment stays as it is."""
    head, other = (
        Node(port=7000, address="10.0.0.1"),
        Node(head="10.0.0.1:7000", gpus=2, resources={"a100": 1}, slow=True),
    )
    assert {"--head", "--port=7000", "--node-ip-address=10.0.0.1"} <= set(head.command())
    assert {"--address=10.0.0.1:7000", "--num-gpus=2", '--resources={"a100": 1}'} <= set(other.command())
    assert "--head" not in other.command()
    environment = head.environment({"RAY_SERVE_HAPROXY_RETRIES": "9", "HOME": "/x"})
    assert environment["RAY_SERVE_HAPROXY_RETRIES"] == "9"
    assert environment["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"] == str(BUFFER_BYTES)
    assert environment["HOME"] == "/x"
    assert "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S" in other.environment({})
    assert "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S" not in environment


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
async def test_a_node_leaves_no_process_behind(tmp_path: Path) -> None:
    """At a signal all descendants end: also one that left its parent and its session, and ignores SIGTERM."""
    leave = f"(trap '' TERM; setsid sleep 600 & echo $! > {tmp_path}/orphan); exec sleep 600"
    command = f"['sh', '-c', {leave!r}]"
    run = f"from service.cluster.node import run_with_descendants as run; raise SystemExit(run({command}, {{}}))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", run)
    orphan = tmp_path / "orphan"
    await until(lambda: orphan.exists() and orphan.read_text().endswith("\n"))
    pid = int(orphan.read_text())
    assert lives(pid)
    process.terminate()
    assert await process.wait() == 0
    assert not lives(pid)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_error_names_the_extra() -> None:
    """Ray is optional, and the error has the command that installs it."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "cluster", "deploy"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "convmlp: this command needs Ray, which is not installed; install this package's extra `cluster`\n"
    )


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make test-cluster")
def test_the_application_of_the_manifest_builds() -> None:
    """Serve accepts every option of every deployment."""
    build = (
        "from pathlib import Path; from service.cluster.config_file import read_config;"
        "from service.cluster.app import build; from ray.serve._private.build_app import build_app;"
        f"settings = read_config(Path({str(RAY / 'serve.yaml')!r})).settings;"
        "built = build_app(build(settings), name='convmlp', default_runtime_env={});"
        "print(*sorted(one.name for one in built.deployments))"
    )
    done = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["grpc", "rest", "worker-pets"]
