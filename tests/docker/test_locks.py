"""The images' lock files match the requirements of the project."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "docker" / "locks"
SERVICE, CLIENT = (tomllib.loads((ROOT / name).read_text()) for name in ("pyproject.toml", "client/pyproject.toml"))
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;]+)")


def locked(*names: str) -> dict[str, str]:
    """Version by package, of lock files."""
    lines = [line for name in names for line in (LOCKS / f"{name}.txt").read_text().splitlines()]
    return {canonicalize_name(found[1]): found[2] for line in lines if (found := PINNED.match(line))}


def extra(project: dict[str, Any], name: str) -> list[str]:
    wanted: list[str] = project["project"]["optional-dependencies"][name]
    return wanted


@pytest.mark.parametrize(
    ("locks", "wanted"),
    [
        (["build"], [*SERVICE["build-system"]["requires"], *CLIENT["build-system"]["requires"]]),
        (
            ["frontend"],
            [
                *SERVICE["project"]["dependencies"],
                *CLIENT["project"]["dependencies"],
                *extra(CLIENT, "grpc"),
                *extra(SERVICE, "tracing"),
                *extra(SERVICE, "heif"),
            ],
        ),
        (["frontend", "worker-cpu"], extra(SERVICE, "worker")),
        (["frontend", "worker-cuda"], extra(SERVICE, "worker")),
    ],
    ids=["build", "frontend", "worker-cpu", "worker-cuda"],
)
def test_what_is_needed_is_locked(locks: list[str], wanted: list[str]) -> None:
    """The locks have each requirement of pyproject.toml in an allowed version; if not, `make locks` mends it."""
    versions = locked(*locks)
    for one in map(Requirement, wanted):
        if not one.name.startswith("convmlp-"):
            version = versions.get(canonicalize_name(one.name))
            assert version is not None, f"{one.name} is in no lock"
            assert one.specifier.contains(version, prereleases=True), f"{one} is locked at {version}"


def test_every_file_has_a_hash() -> None:
    """Every package has hashes."""
    for lock in LOCKS.glob("*.txt"):
        for package in re.split(r"\n(?=\S)", lock.read_text().strip()):
            assert PINNED.match(package), package
            assert "--hash=sha256:" in package, package
