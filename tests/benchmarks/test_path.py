from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.calls import Call, Counts, count, listing
from benchmarks.path import REST, WORKER, trace, typical, without_timers

MADE = """
import asyncio

def plain():
    return helped()

def helped():
    return 1

async def waits():
    await asyncio.sleep(0)
    return plain()
"""
RECORDED = """
import asyncio, json, sys, threading
from pathlib import Path
from benchmarks.calls import Recorder

root = Path(sys.argv[1])
sys.path.insert(0, str(root))
recorder = Recorder("one", root, ["own"])
recorder.install()
from own import made
import foreign

asyncio.run(made.waits())
recorder.start()
asyncio.run(made.waits())
foreign.plain()
thread = threading.Thread(target=made.plain, name="second")
thread.start()
thread.join()
print(json.dumps(recorder.stop()))
"""


def call(name: str, file: str = "service/a.py", thread: str = "main", depth: int = 0, *, resumed: bool = False) -> Call:
    return Call("rest", thread, file, 1, name, depth, resumed)


def test_what_a_timer_does_is_no_part_of_a_request() -> None:
    """A timer's call is left out with all that it calls in its thread, and with nothing else."""
    timer = "service/observability/event_loop.py"
    calls = [
        call("before", depth=2),
        call("watch", timer, depth=2, resumed=True),
        call("report", depth=3),
        call("other", thread="second", depth=5),
        call("count", depth=4),
        call("after", depth=2),
        call("deeper", depth=3),
        call("watch", timer, depth=2, resumed=True),
        call("watch", timer, depth=2, resumed=True),
        call("last", depth=1),
    ]
    assert [one.name for one in without_timers(calls)] == ["before", "other", "after", "deeper", "last"]


def test_changes_of_file_are_counted_in_each_thread() -> None:
    """Calls of two threads that alternate in time change no file; a file counts once in all threads together."""
    calls = [
        call("f", "service/a.py", "first"),
        call("g", "service/b.py", "second"),
        call("h", "service/a.py", "first"),
        call("i", "service/b.py", "second"),
        call("j", "service/c.py", "second"),
    ]
    assert count(calls) == Counts(calls=5, files=3, changes=1)


def test_the_listing_is_indented_from_the_shallowest_call_on() -> None:
    """What lies below all calls of a thread, as the function that runs the event loop, does not indent them."""
    calls = [call("f", depth=7), call("g", depth=8), call("h", depth=7, resumed=True)]
    assert list(listing(calls)) == [
        "rest, thread main: 3 calls",
        "  f  service/a.py:1",
        "    g  service/a.py:1",
        "  h  service/a.py:1 (resumed)",
    ]


def test_own_calls_of_all_threads_are_recorded(tmp_path: Path) -> None:
    """From `start` on each call and each resumption counts, in threads as well, but none of other folders."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "made.py").write_text(MADE)
    (tmp_path / "foreign.py").write_text(MADE)
    command = [sys.executable, "-c", RECORDED, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    calls = [Call(*fields) for fields in json.loads(ran.stdout)]
    assert [(one.thread, one.name, one.depth, one.resumed) for one in calls] == [
        ("MainThread", "waits", 0, False),
        ("MainThread", "waits", 0, True),
        ("MainThread", "plain", 1, False),
        ("MainThread", "helped", 2, False),
        ("second", "plain", 0, False),
        ("second", "helped", 1, False),
    ]
    assert {(one.process, one.file) for one in calls} == {("one", "own/made.py")}


@pytest.mark.serial  # beside other tests, messages of other kinds come between
def test_a_request_is_traced_through_front_end_and_worker() -> None:
    """A warm request goes through both processes, and almost the same way each time."""
    traces = trace(["classify"], traces=5)["classify"]
    shown = typical(traces)
    for process in (REST, WORKER):
        assert any(one.process == process for one in shown)
    assert all(one.file.startswith(("service/", "model/")) for one in shown)
    assert sum(abs(len(one) - len(shown)) <= 5 for one in traces) >= 3
