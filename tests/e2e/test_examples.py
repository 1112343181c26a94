"""The code of `examples/` and `docs/clients.md`, run unchanged with the real service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import PIL.Image
import pytest

from tests.e2e.convmlp_process import RunningService

ROOT = Path(__file__).parents[2]
CAT = ROOT / "examples/cat.jpg"
DOCS = ROOT / "docs/clients.md"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node.js example with its packages, installed as its first lines describe."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js is not installed")
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "examples/node", folder / "examples/node", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copytree(ROOT / "proto", folder / "proto")
    package = folder / "examples/node"
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    installed = subprocess.run(command, cwd=package, capture_output=True, text=True, timeout=240, check=False)
    if installed.returncode and re.search("ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT", installed.stderr):
        pytest.skip("the npm registry is unreachable")
    assert installed.returncode == 0, installed.stderr
    return package


def test_similar_pictures_are_found(tmp_path: Path) -> None:
    """The example groups the rows that are nearly alike, and draws each picture beside the most similar ones."""
    pytest.importorskip("faiss")
    names = [f"{at}.jpg" for at in range(4)]
    for name in names:
        shutil.copy(CAT, tmp_path / name)
    (tmp_path / "vectors.json").write_text(json.dumps({"model": "any", "names": names}))
    np.save(tmp_path / "vectors.npy", np.array([[1, 0], [0, 3], [2, 0.1], [-1, 0]], np.float32))
    script = ROOT / "examples/similar_pictures/similar_pictures.py"
    found = _run([sys.executable, str(script), "vectors.npy", "--sheet", "sheet.png", "--count", "2"], tmp_path)
    assert found == "near-duplicates: 0.jpg 2.jpg\n4 pictures -> sheet.png\n"
    with PIL.Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 3 * 128


def test_node_calls_over_grpc(service: RunningService, node: Path, tmp_path: Path) -> None:
    """The Node.js example prints the labels of every image of a stream, one error for a bad image, and a box."""
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    paths = [str(CAT), str(broken), *[str(CAT)] * 40]
    answered = _run(["node", "grpc.js", service.grpc_address, *paths], node)
    lines = answered.splitlines()
    shown = [_labels(line) for line in lines[:-1] if str(broken) not in line]
    assert shown == [_labels_of_cat(service, top_k=3)] * 41
    assert [line.partition(": ")[2][:6] for line in lines if str(broken) in line] == ["error:"]
    assert re.search(r"cat\.jpg: cat [01]\.\d\d at \d+, \d+, \d+, \d+$", lines[-1])


def test_node_calls_over_http(service: RunningService, node: Path) -> None:
    """The Node.js example without packages prints the service's labels in their order."""
    assert _labels(_run(["node", "rest.js", service.url, str(CAT)], node)) == _labels_of_cat(service, top_k=5)


def test_the_documents_python_runs(service: RunningService, tmp_path: Path) -> None:
    """The Python code of docs/clients.md works with Triton's and Hugging Face's unmodified clients."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    # Roboflow's client has its own environment: tests/clients/test_roboflow.py.
    blocks = [block for block in blocks if "inference_sdk" not in block]
    assert len(blocks) == 2
    source = "\n".join(blocks)
    source = source.replace("localhost:8000", service.url.removeprefix("http://")).replace("examples/cat.jpg", str(CAT))
    script = tmp_path / "clients.py"
    script.write_text(source)
    assert "b'cat'" in _run([sys.executable, str(script)], tmp_path)


def _labels_of_cat(service: RunningService, top_k: int) -> list[str]:
    """The names that the service answers for the cat, by falling score."""
    answered = httpx2.post(f"{service.url}/classify", params={"top_k": top_k}, content=CAT.read_bytes(), timeout=60)
    names = [one["label"] for one in answered.json()["results"][0]["labels"]]
    assert len(names) == top_k
    return names


def _labels(line: str) -> list[str]:
    """The names in a line such as "cat.jpg: Persian 41.9 %, shiba inu 35.0 %"; scores may differ in rounding."""
    return re.findall(r"([^\s,][^,]*) \d+\.\d %", line.partition(": ")[2])


def _run(command: list[str], folder: Path) -> str:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
