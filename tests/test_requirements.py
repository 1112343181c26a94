"""requirements/, which `make` installs from, matches the project's requirements; and the project has one version."""

from __future__ import annotations

import importlib.metadata
import re
import socket
import threading
import tomllib
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from requirements import torch_build

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {name: (ROOT / "requirements" / f"{name}.txt").read_text() for name in ("torch", "serve", "dev", "bench")}
SERVICE, CLIENT = (
    tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in (".", "client")
)
EXTRAS = SERVICE["optional-dependencies"]
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
NEEDS = {
    "serve": [
        *BUILD,
        *SERVICE["dependencies"],
        *CLIENT["dependencies"],
        *CLIENT["optional-dependencies"]["grpc"],
        *EXTRAS["worker"],
    ],
    "dev": EXTRAS["dev"],
    "bench": EXTRAS["bench"],
}
INSTALLED = {"serve": ("torch", "serve"), "dev": ("torch", "serve", "dev"), "bench": tuple(LOCKS)}


def locked(names: tuple[str, ...], environment: dict[str, str]) -> dict[str, str]:
    """Version by package of what these files install there."""
    pins = [Requirement(found[0]) for name in names for found in re.finditer(r"^[^ \n]+==[^\\\n]+", LOCKS[name], re.M)]
    there = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    assert len({pin.name for pin in there}) == len(there)
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in there}


def environment_of(python: str, system: str, machine: str) -> dict[str, str]:
    """What differs there from this machine, for markers."""
    versions = {"python_version": python, "python_full_version": f"{python}.0"}
    return {**versions, "sys_platform": system, "platform_machine": machine}


@pytest.mark.parametrize("target", list(NEEDS))
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize(("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_what_is_needed_is_locked(target: str, python: str, system: str, machine: str) -> None:
    """Whatever pyproject.toml asks for is installed, in a version that it allows; else: `make locks`."""
    versions = locked(INSTALLED[target], environment_of(python, system, machine))
    for one in map(Requirement, NEEDS[target]):
        if not one.name.startswith("convmlp-"):
            version = versions.get(canonicalize_name(one.name))
            assert version is not None, f"{one.name} is not locked"
            assert one.specifier.contains(version, prereleases=True), f"{one} is locked at {version}"


@pytest.mark.parametrize("target", list(NEEDS))
def test_what_the_needed_need_is_locked(target: str) -> None:
    """`make` resolves nothing: on this machine, whatever a locked package asks for is locked too."""
    versions = locked(INSTALLED[target], {})
    for name in versions:
        try:
            asked = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # not on this machine: torch's libraries for CUDA, `make bench`'s packages
        for one in map(Requirement, asked):
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                version = versions.get(canonicalize_name(one.name))
                assert version is not None, f"{name} needs {one.name}, which is not locked"
                assert one.specifier.contains(version, prereleases=True), f"{name} needs {one}, locked at {version}"


def test_all_but_torch_have_hashes() -> None:
    """No package is taken on its name alone but torch, whose builds come from several indexes."""
    for name, text in LOCKS.items():
        for package in re.split(r"\n(?=\S)", text.strip()):
            assert ("--hash=sha256:" in package) == (name != "torch"), package


def test_the_images_have_the_tested_versions() -> None:
    """What runs in a container is what `make test` has tested; only the tools of the build are its own."""
    tested = locked(tuple(LOCKS), environment_of("3.11", "linux", "x86_64"))
    for lock in (ROOT / "docker" / "locks").glob("*.txt"):
        if lock.stem != "sbom":
            pins = re.findall(r"^([\w.-]+)==([^ +\n]+)", lock.read_text(), re.M)
            differ = {name: version for name, version in pins if tested.get(name, version) != version}
            assert differ == {}, lock.name


def test_service_and_client_are_of_one_version() -> None:
    """The service needs the client of its own version: both are made of one contract."""
    (client,) = (one for one in map(Requirement, SERVICE["dependencies"]) if one.name == "convmlp-client")
    assert str(client.specifier) == f"=={CLIENT['version']}"
    assert SERVICE["version"] == CLIENT["version"]


@pytest.mark.parametrize(
    ("wanted", "platform", "has_driver", "build"),
    [
        ("auto", "linux", False, "cpu"),
        ("auto", "linux", True, None),
        ("auto", "darwin", False, None),
        ("cpu", "linux", True, "cpu"),
        ("cuda", "linux", False, None),
        ("cu128", "linux", False, "cu128"),
    ],
)
def test_torch_is_for_cpus_where_there_is_no_gpu(
    wanted: str, platform: str, has_driver: bool, build: str | None
) -> None:
    """PyPI's build for Linux has gigabytes of CUDA; a user's choice wins."""
    assert torch_build.build_for(wanted, platform, has_driver=has_driver) == build


def test_an_index_that_is_not_reachable_is_left_out() -> None:
    """Where a network reaches a mirror only, or pip is to use no index, the installation goes on without delay."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert not torch_build.reaches(address, timeout_s=0.2)
    assert not torch_build.reaches(address)
    server = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    answering = threading.Thread(target=server.handle_request)
    answering.start()
    assert torch_build.reaches(f"http://127.0.0.1:{server.server_port}/")
    answering.join()
    server.server_close()
