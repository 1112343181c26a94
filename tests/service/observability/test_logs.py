"""The log: all messages take one path, and a caller's text cannot begin a line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import structlog

from service.observability.logs import MAX_KINDS, NO_COLOURS, REPEAT_INTERVAL_S, LogLimit, console_renderer
from tests.fakes import FakeClock
from tests.service.observability.log_lines import MARKER

UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def written(style: str, level: str = "info") -> str:
    """The standard error of a process of `log_lines.py`."""
    command = [sys.executable, "-m", "tests.service.observability.log_lines", style, level]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert done.stdout == b""
    return done.stderr.decode()


def json_lines(level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in written("json", level).splitlines()]


def test_every_line_of_json_is_an_object_with_its_time_in_utc() -> None:
    """Text of a caller, a library or a warning is a value in one line, and parses back unchanged."""
    lines = json_lines()
    assert all(UTC.fullmatch(line["timestamp"]) and line["role"] == "a-role" for line in lines)
    assert [line["event"].split(" ")[0] for line in lines[:2]] == ["event", "failed"]
    assert lines[0]["value"] == lines[0]["values"][0] == lines[0]["event"].removeprefix("event ")
    assert "ValueError" in lines[1]["exception"]
    assert lines[1]["request_id"] == "r-1"


def test_processes_that_share_a_log_do_not_break_each_other_s_lines() -> None:
    """Four processes write to one pipe at a time, unbuffered as in the images: each line comes out whole."""
    program = (
        "from service.observability.logs import configure_logs as c; import structlog; c('info', 'json', 'many')\n"
        "for number in range(2000): structlog.get_logger().info('one', number=number)"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    receive, send = os.pipe()
    writers = [subprocess.Popen([sys.executable, "-c", program], stderr=send, env=environment) for _ in range(4)]
    os.close(send)
    with os.fdopen(receive) as log:
        numbers = Counter(json.loads(line)["number"] for line in log)
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    assert numbers == dict.fromkeys(range(2000), 4)


def test_libraries_and_warnings_go_the_same_way() -> None:
    """uvicorn's, gRPC's, asyncio's and Python's own messages are lines like all others, under their logger's name."""
    others = [(line["logger"], line["level"]) for line in json_lines() if "logger" in line]
    libraries = ["uvicorn.error", "grpc._cython", "asyncio", "py.warnings"]
    assert others[:-1] == [(name, "warning") for name in libraries]


def test_lines_in_a_request_s_context_name_it() -> None:
    """The service's and a library's lines carry the request's id and its step's span; lines outside carry neither."""
    lines = [line for line in json_lines() if line["event"] in ("on the way", "request", "after it")]
    ours, library, request, after = lines
    assert library["logger"] == "library"
    assert {line["request_id"] for line in (ours, library, request)} == {"r-2"}
    assert len({line["trace_id"] for line in (ours, library, request)}) == 1
    assert ours["span_id"] == library["span_id"] == ours["step"]
    assert request["span_id"] == ours["request"]
    assert after.keys().isdisjoint({"request_id", "trace_id", "span_id"})


def test_a_callers_text_cannot_begin_a_console_line() -> None:
    """Line breaks and control characters are escaped in every message; a traceback's lines are indented."""
    text = written("console")
    assert re.search(r"[^\x20-\x7e\n]", text) is None
    lines = text.split("\n")[:-1]
    for line in lines:
        assert UTC.match(line) or line.startswith("    "), line
    assert (
        sum("all is well" in line for line in lines if UTC.match(line)) == 5
    )  # in their own line, but for the traceback's


@pytest.mark.parametrize("style", ["console", "json"])
def test_debug_adds_own_lines_and_none_of_libraries(style: str) -> None:
    """At level debug the service logs more, and libraries do not: Pillow logs a picture's contents."""
    text = written(style, "debug")
    assert "the service's own, at debug" in text
    assert MARKER not in text
    assert "GET /" not in text


def test_console_lines_have_the_form_of_structlogs_renderer() -> None:
    """The service's own renderer, which is faster, gives the same text."""
    render = console_renderer(NO_COLOURS)
    reference = structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    base = {"timestamp": "2026-01-01T00:00:00.000000Z", "level": "info", "event": "an event", "role": "r"}
    for more in (
        {},
        {"logger": "library", "path": "/a b", "text": 'it\'s "quoted"', "empty": "", "none": None, "ratio": 1.5},
        {"level": "critical", "names": ["a"], "pair": "a=b", "exception": "Traceback\nValueError: x"},
    ):
        event = {**base, **more}
        expected = str(reference(None, "", dict(event))).replace("\n", "\n    ")
        assert render(None, "", event) == expected


def test_repeated_events_are_few_lines() -> None:
    """Events of one kind are one line a minute, with the number that was left out; all kinds together are few."""
    clock = FakeClock()
    limit = LogLimit(clock)
    assert [limit.due("a") for _ in range(4)] == [0, None, None, None]
    assert limit.due("b") == 0
    clock.now_s += REPEAT_INTERVAL_S
    assert limit.due("a") == 3
    due = [limit.due(str(kind)) for kind in range(1000)]
    assert 5 <= sum(left_out is not None for left_out in due) <= MAX_KINDS
    clock.now_s += REPEAT_INTERVAL_S
    assert limit.due("another") == 0
