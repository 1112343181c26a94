from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks.processes import ServerProcess, free_ports
from tests.e2e.convmlp_process import is_alive

ORPHANS = """
import sys
from pathlib import Path
import psutil
from benchmarks.processes import ServerProcess, adopt_orphans

SERVER = '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()  # a daemon, which its parent leaves behind
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
os.wait()
print("daemon is there", flush=True)
time.sleep(60)
'''
adopt_orphans()
bystander = psutil.Popen(["sleep", "60"])
log = Path(sys.argv[1])
process = ServerProcess([sys.executable, "-c", SERVER], {}, log, Path.cwd())
while b"daemon is there" not in log.read_bytes():
    pass
print(len(process.cpu_by_part()))
process.stop(patience_s=0.2)
print([child.pid == bystander.pid for child in psutil.Process().children(recursive=True)])
bystander.kill()
bystander.wait()
"""


def test_no_process_of_a_server_is_left(tmp_path: Path) -> None:
    """A daemon in a session of its own, whose parent ignores SIGTERM, ends with the server; others' processes stay."""
    ran = subprocess.run(
        [sys.executable, "-c", ORPHANS, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.stdout.split("\n")[:2] == ["2", "[True]"], ran.stderr


def test_usage_counts_cpu_and_memory_of_all_processes(tmp_path: Path) -> None:
    """A child's work and memory are the server's, and it ends with the server, without a signal of its own."""
    child = "import time\ndata = bytearray(100_000_000)\nwhile time.process_time() < 0.5: pass\ntime.sleep(60)"
    server = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    process = ServerProcess([sys.executable, "-c", server], {}, tmp_path / "log", tmp_path)
    try:
        while (usage := process.usage()).cpu_s < 0.5 or usage.resident_bytes < 100_000_000:
            assert not process.ended
        (child_pid,) = [one.pid for one in psutil.Process(process.pid).children()]
    finally:
        process.stop()
    assert process.ended
    assert not is_alive(child_pid)


def test_free_ports_are_in_a_row() -> None:
    """The ports from the first on are free, as many as asked for."""
    first = free_ports(6)
    assert 1024 < first <= 65536 - 6
