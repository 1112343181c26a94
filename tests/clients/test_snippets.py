"""The code of docs/clients.md for curl, Java and Node.js; only the address and the picture's path are replaced."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tests.clients.conftest import CAT, Expected
from tests.clients.installs import ROOT, node_modules, run, tool
from tests.e2e.convmlp_process import RunningService

DOCS = ROOT / "docs/clients.md"


def snippet(language: str, beginning: str, service: RunningService) -> str:
    """The one block of this language whose text has `beginning` in its first lines."""
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if beginning in block]
    assert "http://localhost:8000" in block
    return str(block.replace("http://localhost:8000", service.url).replace("examples/cat.jpg", str(CAT)))


def labels_in(printed: str) -> list[str]:
    return [row["label"] for row in json.loads(printed)["results"][0]["labels"]]


@pytest.mark.parametrize("more", [(), ("--http2",)], ids=" ".join)
def test_curl(service: RunningService, expected: Expected, more: tuple[str, ...]) -> None:
    """curl sends a file's bytes; with --http2 it offers to change to HTTP/2, and is answered over HTTP/1.1."""
    program, *flags = shlex.split(snippet("sh", "http://localhost:8000/classify", service))
    if more and "HTTP2" not in run([tool(program), "--version"]):
        pytest.skip("this curl has no HTTP/2")
    assert labels_in(run([tool(program), "--silent", *more, *flags])) == list(expected.labels)


def test_java(service: RunningService, expected: Expected, tmp_path: Path) -> None:
    """Java's HttpClient as it is: it offers to change to HTTP/2 with each request that has a body."""
    program = tmp_path / "Classify.java"
    program.write_text(snippet("java", "HttpClient", service), encoding="utf-8")
    assert labels_in(run([tool("java"), "-XX:TieredStopAtLevel=1", str(program)])) == list(expected.labels)


def test_node_fetch(service: RunningService, expected: Expected, tmp_path: Path) -> None:
    """Node's built-in fetch sends a file's bytes."""
    program = tmp_path / "classify.mjs"
    program.write_text(snippet("js", "fetch(", service), encoding="utf-8")
    assert labels_in(run([tool("node"), str(program)])) == list(expected.labels)


def test_huggingface_in_node(service: RunningService, expected: Expected, tmp_path: Path) -> None:
    """Hugging Face's client for JavaScript, by its name in npm."""
    (tmp_path / "node_modules").symlink_to(node_modules("@huggingface/inference") / "node_modules")
    program = tmp_path / "classify.mjs"
    program.write_text(snippet("js", "@huggingface/inference", service), encoding="utf-8")
    printed = run(["node", str(program)], tmp_path)
    assert re.findall(r"label: '(.*?)'", printed) == list(expected.labels)
