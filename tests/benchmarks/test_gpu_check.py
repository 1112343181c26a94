"""`make gpu-check`, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.device_throughput import measure
from benchmarks.gpu_check import PartFailed, Report, as_markdown, run_part

ROOT = Path(__file__).parents[2]
ASKED_FOR = "CONVMLP_TEST_GPU_CHECK"


def gpu_check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_reports_it(tmp_path: Path) -> None:
    """Nothing is run or written, and the exit status is 1."""
    ran = gpu_check("--out", str(tmp_path / "out"))
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (1, "", 1)
    assert "torch finds no GPU here" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_part_that_fails_is_in_the_report() -> None:
    """With its reason and with what it found before; the report names it first."""

    def rows() -> Iterator[dict[str, Any]]:
        yield {"batch": 1, "images_per_s": 12345.678}
        raise PartFailed("it took longer than 3 s")

    part = run_part("throughput", rows)
    assert (part.failure, part.rows) == ("it took longer than 3 s", [{"batch": 1, "images_per_s": 12345.678}])
    report = Report(
        "a GPU", "a processor", "torch", "1234", (0.0, 0.0, 0.0), parts=[run_part("tests", lambda: iter([])), part]
    )
    lines = as_markdown(report).splitlines()
    assert lines[2].startswith("Failed: throughput, in ")
    assert lines[lines.index("Failed: it took longer than 3 s") + 2 :] == [
        "| batch | images_per_s |",
        "|---|---|",
        "| 1 | 12346 |",
    ]


def test_throughput_has_a_figure_for_each_batch() -> None:
    """Of the precision that the worker would select; the median lies within the spread."""
    found = list(measure(torch.device("cpu"), ["s"], [1, 2], seconds=0.05))
    assert [one.batch for one in found] == [1, 2]
    assert all(0 < one.low <= one.images_per_s <= one.high and one.runs >= 3 for one in found)


@pytest.mark.skipif(ASKED_FOR not in os.environ, reason=f"takes a minute of two cores: {ASKED_FOR}=1")
def test_all_parts_run_on_a_cpu(tmp_path: Path) -> None:
    """A little of each; both forms of the report have every part."""
    ran = gpu_check("--device", "cpu", "--quick", "--out", str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {part["name"]: bool(part["rows"]) for part in report["parts"]} == dict.fromkeys(
        ("tests", "parity", "throughput", "service"), True
    )
    assert (tmp_path / "report.md").read_text() == ran.stdout
    assert "All parts passed" in ran.stdout
