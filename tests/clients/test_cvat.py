"""CVAT's unmodified SDK and command line, with the function of examples/cvat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import httpx2
import numpy as np
import pytest

from tests.clients.conftest import CAT
from tests.clients.installs import ROOT, only_if_asked_for, python_environment, run
from tests.e2e.convmlp_process import RunningService

pytestmark = only_if_asked_for

PROGRAM = Path(__file__).parent / "programs/cvat_task.py"
FUNCTION = ROOT / "examples/cvat/convmlp_function.py"
CAT_LABEL = 71
"""The id that the program's task gives the label."""
DOWNLOADS = "XDG_CACHE_HOME"
"""Environment variable of the folder in which the SDK keeps pictures."""


class Annotate(Protocol):
    def __call__(self, *parameters: str, more: tuple[str, ...] = ()) -> list[dict[str, Any]]: ...


@pytest.fixture
def annotate(service: RunningService, tmp_path: Path) -> Annotate:
    """What the command line sends to CVAT, with these parameters of the function."""

    def annotate(*parameters: str, more: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        python = python_environment("cvat")
        given = [argument for one in (f"url=str:{service.url}", *parameters) for argument in ("-p", one)]
        command = [str(python), str(PROGRAM), str(FUNCTION), str(CAT), *given, "--allow-unmatched-labels", *more]
        environment = {"PYTHONPATH": str(ROOT / "client"), DOWNLOADS: str(tmp_path)}
        ((sent,),) = [json.loads(run(command, environment=environment).splitlines()[-1])]
        assert sent["tags"] == []
        found: list[dict[str, Any]] = sent["shapes"]
        return found

    return annotate


def test_boxes(service: RunningService, annotate: Annotate) -> None:
    """They are those of REST, under the task's own ids of labels."""
    answered = httpx2.post(f"{service.url}/detect?masks=false", content=CAT.read_bytes(), timeout=60).json()
    boxes = [list(one["box"].values()) for one in answered["results"][0]["detections"]]
    shapes = annotate()
    assert [(shape["type"], shape["label_id"], shape["source"]) for shape in shapes] == [
        ("rectangle", CAT_LABEL, "auto")
    ]
    assert np.allclose([shape["points"] for shape in shapes], boxes, atol=0.1)


def test_masks(service: RunningService, annotate: Annotate) -> None:
    """They have the area of REST's segments, as CVAT's run lengths; or are polygons, where CVAT wants these."""
    answered = httpx2.post(f"{service.url}/segment?classes=cat", content=CAT.read_bytes(), timeout=60).json()
    (shape,) = annotate("shape=str:mask")
    assert (shape["type"], shape["label_id"]) == ("mask", CAT_LABEL)
    assert sum(shape["points"][1:-4:2]) == answered["results"][0]["segments"][0]["area"]
    polygons = annotate("shape=str:mask", more=("--conv-mask-to-poly",))
    assert {(shape["type"], shape["label_id"]) for shape in polygons} == {("polygon", CAT_LABEL)}


def test_thresholds(annotate: Annotate) -> None:
    """CVAT's threshold leaves out what scores less."""
    assert annotate(more=("--conf-threshold", "0.99999")) == []
