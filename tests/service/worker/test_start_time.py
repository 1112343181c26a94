"""What a worker that starts expects of its own start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from service.worker.start_time import MIN_RETRY_S, StartTime, process_age_s
from service.worker.state_folder import StateFolder
from tests.fakes import FakeClock


def test_a_start_is_expected_to_take_as_long_as_the_last_one(tmp_path: Path) -> None:
    """The next process counts down from what its predecessor took, without what that one measured for it."""
    age = FakeClock(80.0)
    StartTime(("a", "cpu"), StateFolder(tmp_path), age).ended(measuring_s=68.0)
    known = StartTime(("a", "cpu"), StateFolder(tmp_path), age)
    assert known.seconds == 12.0
    for age.now_s, left_s in ((0.0, 12.0), (4.0, 8.0), (8.0, 4.0)):
        assert known.left_s() == left_s
    assert StartTime(("b", "cpu"), StateFolder(tmp_path), age).seconds == 0.0


def test_a_start_that_takes_longer_is_expected_to_take_longer_and_longer(tmp_path: Path) -> None:
    """Beyond the last start's time, and where none is known, the expectation grows with the age."""
    age = FakeClock(1.0)
    first = StartTime((), StateFolder(tmp_path), age)
    for age.now_s, left_s in ((0.5, 2.0), (3.0, 3.0), (40.0, 40.0)):
        assert first.left_s() == left_s
    age.now_s = 1.0
    first.ended(measuring_s=0.0)
    assert first.seconds == 1.0
    for age.now_s, left_s in ((0.9, MIN_RETRY_S), (4.0, 1.0), (40.0, 10.0)):
        assert first.left_s() == left_s


@pytest.mark.parametrize("kept", [-5.0, 0.0, None])
def test_a_kept_time_that_cannot_be_is_ignored(tmp_path: Path, kept: float | None) -> None:
    """A damaged measurement never makes Retry-After negative."""
    StateFolder(tmp_path).write("start", (), kept)
    assert StartTime((), StateFolder(tmp_path), FakeClock(3.0)).left_s() == 3.0


def test_the_age_of_a_process_includes_its_imports() -> None:
    """It counts from the process's start, not from this module's import."""
    code = "import time; time.sleep(0.5); from service.worker.start_time import process_age_s as s; print(s())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ran.stdout) >= 0.4
    assert process_age_s() > 0
