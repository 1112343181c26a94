"""The table of clients in docs/clients.md."""

from __future__ import annotations

import ast
import json
import re

from tests.clients.installs import NPM, PYTHON, ROOT

PAGE = ROOT / "docs/clients.md"


def rows() -> list[tuple[str, str, str]]:
    """Client, version, and the cell with its test."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition("\n## Clients that are tested\n")
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [(row[0], row[1], row[3]) for row in cells[1:]]


def test_versions_are_those_that_are_installed() -> None:
    """Each version is the one that the tests install, from the lock of development, PyPI or npm."""
    lock = (ROOT / "requirements/dev.txt").read_text(encoding="utf-8")
    pins = [*re.findall(r"^(\S+==\S+)", lock, re.MULTILINE), *(pin for pins in PYTHON.values() for pin in pins)]
    versions = {pin.split("==")[0].replace("huggingface-hub", "huggingface_hub"): pin.split("==")[1] for pin in pins}
    package = json.loads((ROOT / "examples/node/package.json").read_text(encoding="utf-8"))
    versions |= {name: wanted.lstrip("^~") for name, wanted in package["dependencies"].items()} | NPM
    named = [(match[1], version) for client, version, _ in rows() if (match := re.match(r"`(.+?)`", client))]
    assert len(named) > 8
    for name, version in named:
        assert versions[name] == version or versions[name].startswith(f"{version}."), name


def test_each_row_has_a_test_that_exists() -> None:
    """The last cell links a file that has a test of that name."""
    assert len(rows()) > 10
    for client, _, cell in rows():
        match = re.fullmatch(r"\[`(test_\w+)`\]\((\S+)\)", cell)
        assert match, client
        tree = ast.parse((PAGE.parent / match[2]).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert match[1] in names, client
