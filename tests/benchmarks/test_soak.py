"""The soak test: what it counts as right, and a short run of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.soak.account import Account, End, Ended
from benchmarks.soak.resources import FEWEST_SAMPLES, Resources, Sample


@pytest.mark.parametrize("end", [End.ANSWERED, End.REJECTED, End.LEFT, End.REFUSED])
def test_these_ends_need_no_excuse(end: End) -> None:
    """An answer, an expected error, a caller that left and an honest refusal are right at any time."""
    account = Account()
    account.count("classify", Ended(end), time.monotonic())
    assert account.violation_count == 0


@pytest.mark.parametrize("end", [End.TIMED_OUT, End.CUT, End.UNANSWERED, End.WRONG])
def test_these_ends_are_violations_without_a_fault(end: End) -> None:
    """A broken connection, a late answer and a wrong one are violations while nothing disturbs the service."""
    account = Account()
    account.count("classify", Ended(end, "details"), time.monotonic())
    assert account.violation_count == 1
    assert "details" in account.violations[0]


def test_a_fault_excuses_its_own_effects_only() -> None:
    """A killed process excuses broken connections of requests in progress, but no wrong answers."""
    account = Account()
    start_s = time.monotonic()
    with account.fault("killed", End.CUT):
        pass
    account.count("classify", Ended(End.CUT), start_s)
    assert account.violation_count == 0
    account.count("classify", Ended(End.WRONG), start_s)
    assert account.violation_count == 1


def test_a_request_without_an_end_is_a_violation() -> None:
    """The account notices a request that was sent and never ended."""
    account = Account()
    account.sent["classify"] += 2
    account.count("classify", Ended(End.ANSWERED), time.monotonic())
    account.close()
    assert account.violations == ["classify: 2 requests sent, 1 ended"]


@pytest.mark.parametrize(
    ("last", "grown"),
    [
        (Sample(100 << 20, 40, 8), []),
        (Sample(400 << 20, 40, 8), ["worker: memory grew from 105 to 419 MB"]),
        (Sample(100 << 20, 400, 8), ["worker: descriptors grew from 40 to 400"]),
        (Sample(100 << 20, 40, 80), ["worker: threads grew from 8 to 80"]),
    ],
)
def test_growth(last: Sample, grown: list[str]) -> None:
    """Memory, descriptors and threads that grow beyond the bounds are named, with both figures."""
    resources = Resources()
    resources.samples["worker"] = [Sample(100 << 20, 40, 8)] * FEWEST_SAMPLES + [last] * FEWEST_SAMPLES
    assert resources.growth() == grown


def test_a_process_that_still_starts_is_no_growth() -> None:
    """A few samples of a process that has not started yet do not make its usual threads and descriptors look grown."""
    resources = Resources()
    usual, starting = Sample(100 << 20, 40, 80), Sample(30 << 20, 8, 1)
    resources.samples["grpc"] = [usual] * 60 + [starting] * 5 + [usual] * 135
    assert resources.growth() == []


def test_a_short_run(tmp_path: Path) -> None:
    """A run of some seconds with one fault finds no violation, and its account has all kinds of ends."""
    result = tmp_path / "account.json"
    command = [sys.executable, "-m", "benchmarks.soak", "--seconds", "16", "--callers", "6", "--json", str(result)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    account = json.loads(result.read_text())
    assert account["violations"] == []
    assert account["recoveries"]
    assert {end for ends in account["ends"].values() for end in ends} >= {"answered", "rejected", "left"}
