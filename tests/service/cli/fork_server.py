"""Runs `convmlp` commands in processes that are forked from one which has imported the command's modules already.

Imports are nine tenths of the time of most commands. A forked process is like any other in its arguments, environment,
folder, files and exit status. Tests of the start itself, of signals and of terminals start `python -m service.cli`.
"""

from __future__ import annotations

import atexit
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile

ROOT = Path(__file__).parents[3]
IMPORTED = ("service.cli.app", "service.cli.predict", "service.cli.embed", "service.cli.bench", "grpc")


def run_command(
    arguments: Sequence[str], stdin: bytes, environment: Mapping[str, str], timeout_s: float = 120.0
) -> tuple[int, bytes, bytes]:
    """Run `convmlp` with these arguments to its end.

    Returns:
        Its exit status, negative for a signal, and what it wrote to stdout and to stderr.

    Raises:
        TimeoutError: it did not end in time; it is killed.
    """
    ours, theirs = socket.socketpair()
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err, ours:
        given.write(stdin)
        given.seek(0)
        with theirs:
            socket.send_fds(_server(), [b"\0"], [theirs.fileno(), given.fileno(), out.fileno(), err.fileno()])
        ours.settimeout(timeout_s)
        ours.sendall(pickle.dumps((list(arguments), dict(environment), str(Path.cwd()))))
        with ours.makefile("rb") as reply:
            status = pickle.load(reply)
        for file in (out, err):
            file.seek(0)
        return status, out.read(), err.read()


@cache
def _server() -> socket.socket:
    """Connected to this process's server, which ends with it."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        # The threads of a library would be lost in a fork.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", __name__]
        process = subprocess.Popen(command, stdin=theirs.fileno(), env=environment, cwd=ROOT)

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(control: socket.socket) -> None:
    for name in IMPORTED:
        import_module(name)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "a module starts a thread when it is imported: it cannot be forked"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes those that have ended
    while True:
        message, files, _, _ = socket.recv_fds(control, 1, 4)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _run(*files)
            return
        for file in files:
            os.close(file)


def _run(request: int, *streams: int) -> None:
    """In a process for each request: fork the command, and report its status. It ends with its caller."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    caller = socket.socket(fileno=request)
    with caller.makefile("rb") as content:
        arguments, environment, folder = pickle.load(content)
    command = os.fork()
    if command == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        caller.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.argv = ["convmlp", *arguments]
        runpy.run_module("service.cli", run_name="__main__", alter_sys=True)
        return
    ended = os.pidfd_open(command)
    if ended not in select.select([ended, caller.fileno()], [], [])[0]:
        os.kill(command, signal.SIGKILL)
    _, status = os.waitpid(command, 0)
    caller.sendall(pickle.dumps(os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    _serve(socket.socket(fileno=0))
