"""Lines that cannot be written: the writer neither waits nor fails, and knows how many were lost."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.observability.logs import REPORT_INTERVAL_S, LogStream
from tests.fakes import FakeClock

LINE = "a line of the log\n"


def test_a_full_pipe_neither_blocks_nor_loses_count() -> None:
    """With a reader that stopped reading, writes return and are counted; whole lines follow when it reads again."""
    reader, writer = os.pipe()
    stream = LogStream(writer)
    while not stream.dropped:
        assert stream.write(LINE) == len(LINE)
    stream.write(LINE)
    assert stream.dropped == 2
    received = read_available(reader)
    stream.write(LINE)
    received += read_available(reader)
    assert set(received.decode().splitlines(keepends=True)) <= {LINE, "\n", LINE[:-1] + "\n"}
    os.close(reader)
    os.close(writer)


def test_a_line_that_was_cut_off_does_not_swallow_the_next_one() -> None:
    """The rest of a long line is lost; the next line begins at the beginning of a line."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stream = LogStream(writer)
    capacity = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    stream.write("x" * 2 * capacity + "\n")
    assert stream.dropped == 1
    assert len(read_available(reader)) == capacity
    stream.write(LINE)
    stream.write(LINE)
    assert read_available(reader).decode() == "\n" + LINE + LINE
    assert stream.dropped == 1
    os.close(reader)
    os.close(writer)


def test_a_closed_pipe_and_a_full_disk_drop_lines() -> None:
    """Neither raises; each lost line counts."""
    reader, writer = os.pipe()
    stream = LogStream(writer)
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for one in (stream, LogStream(full)):
        one.write(LINE)
        one.write(LINE)
        assert one.dropped == 2
    os.close(writer)
    os.close(full)


def test_a_socket_whose_reader_stopped_does_not_block() -> None:
    """As under systemd, whose journal reads a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = LogStream(ours.fileno())
        stream.write(LINE)
        assert theirs.recv(100).decode() == LINE
        while not stream.dropped:
            stream.write(LINE)
        theirs.close()
        stream.write(LINE)
        assert stream.dropped == 2


def test_a_file_gets_every_line(tmp_path: Path) -> None:
    """Characters that UTF-8 cannot encode are escaped."""
    with (tmp_path / "log").open("ab") as file:
        stream = LogStream(file.fileno())
        stream.write("one \udc80\n")
        stream.write(LINE)
    assert (tmp_path / "log").read_text() == "one \\udc80\n" + LINE
    assert stream.dropped == 0


def test_lost_lines_are_reported_when_writing_works_again() -> None:
    """The report has the number of lines; reports keep their distance in time."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    clock, reports = FakeClock(), list[int]()
    stream = LogStream(writer, clock)
    stream.on_recovery = reports.append

    def lose_and_recover() -> None:
        before = stream.dropped
        while stream.dropped < before + 3:
            stream.write(LINE)
        read_available(reader)
        stream.write(LINE)

    lose_and_recover()
    assert reports == [3]
    lose_and_recover()
    assert reports == [3]
    clock.now_s += REPORT_INTERVAL_S
    stream.write(LINE)
    assert reports == [3, 3]
    os.close(reader)
    os.close(writer)


PROGRAM = """
import os, sys
from service.observability.logs import configure_logs
import logging, structlog
stream = configure_logs("info", "json", "a-role")
print("to standard output")
sys.stderr.write("to standard error\\n")
structlog.get_logger().info("of the service")
logging.getLogger("library").warning("of a library")
os.write(os.open(sys.argv[1], os.O_WRONLY), str(stream.dropped).encode())
raise SystemExit(7)
"""


@pytest.mark.parametrize("redirections", ["1>&- 2>&-", "1>/dev/full 2>/dev/full"])
def test_a_process_without_a_log_ends_as_usual(redirections: str, tmp_path: Path) -> None:
    """With its standard streams closed or full a process logs, prints, and ends with its own status."""
    (tmp_path / "dropped").touch()
    shell = f'"$0" -c "$1" "$2" {redirections}'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, PROGRAM, str(tmp_path / "dropped")], timeout=60, check=False
    )
    assert done.returncode == 7
    assert (tmp_path / "dropped").read_text() == ("3" if "full" in redirections else "0")


def test_the_descriptor_of_other_processes_stays_as_it_is() -> None:
    """A process's own standard error stops blocking, also for C libraries; the same pipe elsewhere still blocks."""
    reader, writer = os.pipe()
    program = (
        "from service.observability.logs import configure_logs as c; c('info', 'json', 'r'); import os\n"
        "assert not os.get_blocking(2)\n"
        "try:\n  while True: os.write(2, b'x' * 4096)\nexcept BlockingIOError: pass"
    )
    subprocess.run([sys.executable, "-c", program], stderr=writer, timeout=60, check=True)
    assert os.get_blocking(writer)
    os.close(reader)
    os.close(writer)


def read_available(descriptor: int) -> bytes:
    """All bytes that wait in a pipe."""
    os.set_blocking(descriptor, False)
    received = b""
    try:
        while chunk := os.read(descriptor, 1 << 20):
            received += chunk
    except BlockingIOError:
        pass
    return received
