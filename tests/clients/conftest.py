from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.clients.installs import ROOT
from tests.e2e.convmlp_process import RunningService

CAT = ROOT / "examples/cat.jpg"
TOP_K = 5
"""The service's default."""


@dataclass(frozen=True)
class Expected:
    """REST's labels for `CAT`: of the image and of detections by falling score, of segments by falling area."""

    labels: Sequence[str]
    detections: Sequence[str]
    segments: Sequence[str]


@pytest.fixture(scope="session")
def expected(service: RunningService) -> Expected:
    def names(path: str, items: str) -> list[str]:
        answered = httpx2.post(f"{service.url}{path}", content=CAT.read_bytes(), timeout=60)
        return [row["label"] for row in answered.json()["results"][0][items]]

    found = Expected(names("/classify", "labels"), names("/detect", "detections"), names("/segment", "segments"))
    assert len(found.labels) == TOP_K
    assert found.detections
    assert found.segments
    return found


@pytest.fixture
def no_picture(tmp_path: Path) -> Path:
    """A file that is no picture."""
    file = tmp_path / "picture.jpg"
    file.write_bytes(b"no picture")
    return file
