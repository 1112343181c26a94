"""The images: their contents, what they leave out, and their labels."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.compose.conftest import WITH_BINUTILS
from tests.compose.stack import BASE, FRONTEND, ON_CPU, ROOT, VERSION, WORKER, eventually, inspect, run, send_signal

pytestmark = pytest.mark.usefixtures("images")

IMAGES = (FRONTEND, WORKER)
CONFINED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges:true")
SOCKETS = "--tmpfs=/run/convmlp:uid=10001,gid=10001,mode=0755"
LISTING = """
import importlib.metadata, json
print(json.dumps({one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}))
"""
LARGEST_MB = {FRONTEND: 135, WORKER: 600}
LIBRARIES = """
import ctypes, pathlib, sysconfig
found = sorted(pathlib.Path(sysconfig.get_path("purelib")).rglob("*.so*"))
for library in found:
    ctypes.CDLL(str(library))
print(len(found))
"""
TOOLS = """
import pathlib
folders = ("/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin")
print(*sorted(one.name for folder in folders for one in pathlib.Path(folder).glob("*")))
"""


def python(image: str, code: str, *words: str) -> str:
    confined = (*CONFINED, "--network=none", "--entrypoint=python", *words)
    return run("docker", "run", "--rm", *confined, image, "-c", code).out


@contextmanager
def container(*words: str) -> Iterator[str]:
    """A container in the background: its id; removed at the end."""
    name = run("docker", "run", "--detach", *CONFINED, *words).out.strip()
    try:
        yield name
    finally:
        run("docker", "rm", "--force", name)


def locked(*names: str) -> set[str]:
    """Packages of lock files, as NAME==VERSION in the index's spelling."""
    text = "".join((ROOT / "docker" / "locks" / f"{name}.txt").read_text() for name in names)
    return set(re.findall(r"^([a-z0-9.-]+==[^ ;]+)", text, re.MULTILINE))


@pytest.mark.parametrize(("image", "locks"), [(FRONTEND, ["frontend"]), (WORKER, ["frontend", "worker-cpu"])])
def test_an_image_holds_what_is_locked_and_nothing_else(image: str, locks: list[str]) -> None:
    """Of packages an image has those of its locks, in their versions, and the project's own two; no pip, no torch
    where it is not needed."""
    found: dict[str, str] = json.loads(python(image, LISTING))
    spelt = {f"{re.sub('[-_.]+', '-', name).lower()}=={version}" for name, version in found.items()}
    assert {one for one in spelt if not one.startswith("convmlp-")} == locked(*locks)
    assert {"convmlp-client", "convmlp-serving"} <= found.keys()
    assert ("torch" in found) == (image == WORKER)


@pytest.mark.parametrize("image", IMAGES)
def test_there_is_no_shell_and_no_compiler(image: str) -> None:
    """The only programs are Python and those of its packages."""
    tools = set(python(image, TOOLS).split())
    assert {"python", "convmlp"} <= tools
    assert not tools & {"sh", "bash", "dash", "busybox", "apt", "dpkg", "pip", "pip3", "gcc", "cc", "ld"}


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_has_labels(image: str) -> None:
    """An image has labels, a user without rights, and a health check that needs no shell."""
    config = inspect(image)["Config"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"].startswith("ConvMLP Serving")
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] == VERSION
    assert "org.opencontainers.image.revision" in labels
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["convmlp"]
    assert config["Healthcheck"]["Test"] == ["CMD", "convmlp", "health"]


def test_the_images_share_their_layers() -> None:
    """The worker lies on the front-end's system and packages, so a host that has both keeps those once."""
    frontend, worker = (inspect(image)["RootFS"]["Layers"] for image in IMAGES)
    shared = [one for one, other in zip(frontend, worker, strict=False) if one == other]
    assert len(shared) >= 2
    assert inspect(FRONTEND)["Size"] < inspect(WORKER)["Size"] / 2


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_small(image: str, python_image: str) -> None:
    """What the service never uses is left out of the images: docs/deployment.md lists it."""
    if python_image != WITH_BINUTILS:
        pytest.skip("Debian's binutils, which make the images smaller, cannot be had here")
    assert inspect(image)["Size"] / 1e6 <= LARGEST_MB[image]


@pytest.mark.parametrize("image", IMAGES)
def test_every_library_can_be_loaded(image: str) -> None:
    """No library lacks one that it needs, and none was damaged when its symbols were removed."""
    assert int(python(image, LIBRARIES)) > 50


def test_the_front_end_carries_no_weights() -> None:
    """Models are the worker's; the sample picture of the playground is the front-end's."""
    code = "from model.bundle import EMBEDDED_DIR; print(*sorted(one.name for one in EMBEDDED_DIR.iterdir()))"
    assert python(FRONTEND, code).split() == ["reference.jpg"]
    assert "convmlp_pets_breed" in python(WORKER, code).split()


@pytest.mark.parametrize("part", ["rest", "grpc"])
def test_a_front_end_without_a_worker_is_not_healthy(part: str) -> None:
    """A front-end without a worker listens, and its health check fails with the reason."""
    with container(SOCKETS, FRONTEND, part) as name:
        eventually(lambda: "listening" in run("docker", "logs", name).err, 60)
        ran = run("docker", "exec", name, "convmlp", "health", check=False)
    assert ran.status == 1
    assert f"{part} is not healthy" in ran.err


def test_a_worker_is_healthy_from_its_proof_on_and_while_it_answers() -> None:
    """The worker is healthy once its models proved themselves, and not while it hangs."""
    with container(SOCKETS, WORKER) as name:
        assert run("docker", "exec", name, "convmlp", "health", check=False).status == 1
        eventually(lambda: run("docker", "exec", name, "convmlp", "health", check=False).status == 0)
        assert run("docker", "exec", name, "convmlp", "health", "--live").out == "worker is alive\n"
        send_signal(name, signal.SIGSTOP)
        hung, dead = (
            run("docker", "exec", name, "convmlp", "health", *more, check=False) for more in ((), ("--live",))
        )
        assert (hung.status, dead.status) == (1, 1)
        assert "no reply" in hung.err
        send_signal(name, signal.SIGCONT)
        eventually(lambda: run("docker", "exec", name, "convmlp", "health", check=False).status == 0)


def test_a_stop_while_it_starts_ends_it_at_once() -> None:
    """The first process of a container gets no signal that it has no handler for; it has one before it loads."""
    maps = "print('libtorch' in open('/proc/1/maps').read())"
    with container(SOCKETS, WORKER) as name:
        eventually(lambda: "True" in run("docker", "exec", name, "python", "-c", maps).out)
        run("docker", "stop", "--time", "30", name)
        assert inspect(name)["State"]["ExitCode"] != 128 + signal.SIGKILL


def test_one_container_serves_everything() -> None:
    """`serve` in the worker's image is the whole service in one container, and healthy by the same command."""
    with container(SOCKETS, WORKER, "serve", "--models", "convmlp_pets_breed") as name:
        eventually(lambda: run("docker", "exec", name, "convmlp", "health", check=False).status == 0)


def test_a_host_without_the_nvidia_toolkit_gets_an_error() -> None:
    """Where Docker has no GPU driver, the preflight names what is missing and the alternative."""
    asked = run("docker", "run", "--rm", "--gpus=all", "--entrypoint=python", WORKER, "-c", "", check=False)
    if "could not select device driver" not in asked.err:
        pytest.skip("Docker hands out GPUs on this host")
    as_cuda = f"convmlp-serving/worker:{VERSION}-cuda"
    project = {"CONVMLP_VERSION": VERSION, "COMPOSE_PROJECT_NAME": "convmlp-test-preflight", "COMPOSE_FILE": BASE}
    run("docker", "tag", WORKER, as_cuda)  # the preflight fails before it reads the image
    try:
        ran = run("docker/preflight.sh", environment=project, check=False)
    finally:
        run("docker", "compose", "down", "--volumes", environment=project)
        run("docker", "rmi", as_cuda)
    assert ran.status == 1
    assert "NVIDIA Container Toolkit" in ran.err
    assert "docker-compose.cpu.yml" in ran.err


def test_a_host_that_needs_no_gpu_passes_the_preflight() -> None:
    """Without a GPU reservation the preflight succeeds and prints nothing."""
    ran = run("docker/preflight.sh", environment={"COMPOSE_FILE": ":".join(ON_CPU)})
    assert (ran.out, ran.err) == ("", "")
