"""Runs `convmlp` commands in processes that are forked from one which has imported the command's modules already.

Imports are nine tenths of the time of most commands. A forked process is like any other in its arguments, environment,
folder, files and exit status. Tests of the start itself, of signals and of terminals start `python -m service.cli`.
"""

from __future__ import annotations

import gc
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile

from service.cli.app import LAZY_COMMANDS

ROOT = Path(__file__).parents[1]
COMMAND_LINE = "service.cli"
"""The module that is run as `convmlp`."""
IMPORTED = (*(lazy.import_path.partition(":")[0] for lazy in LAZY_COMMANDS.values()), "typer.rich_utils", "grpc")
TIMEOUT_S = 120.0


class ForkServer:
    """A process that has imported what commands do, and forks a process for each. `environment` is its own, and that of
    a command which is given no other. Use as a context manager."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._environment = dict(environment)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=theirs.fileno(),
                # The threads of a library would be lost in a fork.
                env={**environment, "OPENBLAS_NUM_THREADS": "1"},
                cwd=ROOT,
            )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        arguments: Sequence[str],
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> tuple[int, bytes, bytes]:
        """Run `convmlp` with these arguments to its end; any thread may call it.

        Returns:
            Its exit status, negative for a signal, and what it wrote to stdout and to stderr.

        Raises:
            TimeoutError: it did not end within `TIMEOUT_S`; it is killed.
        """
        variables = self._environment if environment is None else dict(environment)
        ours, theirs = socket.socketpair()
        with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err, ours:
            given.write(stdin)
            given.seek(0)
            with theirs:
                files = [theirs.fileno(), given.fileno(), out.fileno(), err.fileno()]
                socket.send_fds(self._control, [b"\0"], files)
            ours.settimeout(TIMEOUT_S)
            ours.sendall(pickle.dumps((list(arguments), variables, str(folder or Path.cwd()))))
            with ours.makefile("rb") as reply:
                status = pickle.load(reply)
            out.seek(0)
            err.seek(0)
            return status, out.read(), err.read()

    def close(self) -> None:
        self._control.close()
        self._process.wait()


def _serve(control: socket.socket) -> None:
    for name in IMPORTED:
        import_module(name)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "a module starts a thread when it is imported: it cannot be forked"
    gc.freeze()  # processes need not look at what they share
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel removes those that have ended
    while True:
        message, files, _, _ = socket.recv_fds(control, 1, 4)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            _run(*files)
            os._exit(0)
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
        status = _status_of(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # to take the interpreter apart would take longer than most commands
    ended = os.pidfd_open(command)
    if ended not in select.select([ended, caller.fileno()], [], [])[0]:
        os.kill(command, signal.SIGKILL)
    _, status = os.waitpid(command, 0)
    caller.sendall(pickle.dumps(os.waitstatus_to_exitcode(status)))


def _status_of(arguments: Sequence[str]) -> int:
    sys.argv = ["convmlp", *arguments]
    try:
        runpy.run_module(COMMAND_LINE, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter does
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(socket.socket(fileno=0))
