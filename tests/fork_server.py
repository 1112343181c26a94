"""Runs `convmlp` in processes that are forked from one which has imported its modules already.

Imports are nine tenths of the time of most commands, and most of a service's start. A forked process is like any other
in its arguments, environment, folder, files, signals and exit status. The processes that a forked `convmlp serve`
starts are forked, too. Tests of the start itself, of memory, of limits that processes inherit, and of terminals start
`python -m service.cli`.

conftest.py starts one server for a run of all tests. It imports at the first request.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import pickle
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

ROOT = Path(__file__).parents[1]
COMMAND_LINE = "service.cli"
"""The module that is run as `convmlp`."""
FORK_SERVER = "CONVMLP_TEST_FORK_SERVER"
"""Environment variable: the socket of the run's fork server."""
CPU_LOG = "CONVMLP_TEST_FORK_CPU"
"""Environment variable: a file to which the server adds a line for each process that ended, with its seconds of
processor time and its command."""
PARTS = (
    "service.supervision.supervisor",
    "service.frontend.http_main",
    "service.frontend.grpc_main",
    "service.worker.main",
)
TIMEOUT_S = 480.0
"""Less than pytest's own for a test, so that a command which hangs is named. A command of a second has taken two
minutes where forty processes shared two cores."""
STDIN, STDOUT, STDERR = range(3)
INT_BYTES = 4
ABOVE_ALL = 512
"""Above the numbers of files that a process inherits."""


@dataclass(frozen=True)
class Request:
    """What to run: a module and its arguments, its variables and folder, and the numbers of the files that it gets."""

    module: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    numbers: tuple[int, ...]
    is_command: bool
    """It is killed when its caller ends, and ends without taking the interpreter apart, which would take longer than
    most commands."""


class ForkServer:
    """Such a process. Use as a context manager; it ends at the latest with the process that started it.

    Imports see `environment`, by default that of this process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="convmlp-test-fork-")
        self.path = f"{self._folder.name}/socket"
        with socket.create_server(self.path, family=socket.AF_UNIX, backlog=128) as listener:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                # As `convmlp grpc` does before it imports gRPC; and the threads of a library would be lost in a fork.
                env={"GRPC_VERBOSITY": "ERROR", **environment, "OPENBLAS_NUM_THREADS": "1"},
                cwd=ROOT,
            )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and wait until the processes that it has forked have ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


class ForkedProcess:
    """A forked `convmlp`, or another module that is run, for synchronous callers: the part of `subprocess.Popen` that
    tests use."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        files: Mapping[int, int],
        *,
        folder: Path | None = None,
        server: str | None = None,
        is_command: bool = False,
        module: str = COMMAND_LINE,
    ) -> None:
        """Start it. `files` maps its file numbers to files of this process; without one for stdin that is empty.
        `server` is the path of a fork server's socket, by default that of the run."""
        self.stderr: IO[str] | None = None
        self.returncode: int | None = None
        place = str(folder or Path.cwd())
        request = Request(module, tuple(arguments), dict(environment), place, tuple(files), is_command)
        self._server = socket.socket(socket.AF_UNIX)
        try:
            self._server.connect(server or os.environ[FORK_SERVER])
            socket.send_fds(self._server, [b"\0"], list(files.values()))
            self._server.sendall(pickle.dumps(request))
            self._server.settimeout(TIMEOUT_S)  # the first one waits for imports
            number, (self._pidfd,), _, _ = socket.recv_fds(self._server, INT_BYTES, 1)
            self.pid = int.from_bytes(number)
        except BaseException:
            self._server.close()
            raise

    def fileno(self) -> int:
        """Of a file that is readable once it has ended."""
        return self._server.fileno()

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its exit status. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("convmlp", timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def _end(self) -> None:
        status = self._server.recv(INT_BYTES)
        assert status, "the fork server has ended"
        self.returncode = int.from_bytes(status, signed=True)
        self._server.close()
        os.close(self._pidfd)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its status is on the way
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedChild:
    """A process that a forked `convmlp serve` has started."""

    def __init__(self, process: ForkedProcess) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(cls, command: str, environment: Mapping[str, str], descriptors: Sequence[int]) -> ForkedChild:
        """As `service.supervision.child.start_process`: `convmlp COMMAND` with descriptors under their numbers."""
        kept = {number: number for number in (STDOUT, STDERR, *descriptors)}
        return cls(await asyncio.to_thread(ForkedProcess, (command,), environment, kept))

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def wait(self) -> int:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process.fileno(), ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.fileno())
        return self._process.wait()

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)


def run(
    arguments: Sequence[str],
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    server: str | None = None,
) -> tuple[int, bytes, bytes]:
    """Run a command of `convmlp` to its end; any thread may call it.

    Returns:
        Its exit status, negative for a signal, and what it wrote to stdout and to stderr.

    Raises:
        subprocess.TimeoutExpired: it did not end within `TIMEOUT_S`; it is killed.
    """
    variables = os.environ if environment is None else environment
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        files = {STDIN: given.fileno(), STDOUT: out.fileno(), STDERR: err.fileno()}
        process = ForkedProcess(arguments, variables, files, folder=folder, server=server, is_command=True)
        try:
            status = process.wait(TIMEOUT_S)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


@dataclass(frozen=True)
class Running:
    """A process of the server: its caller's connection, and its pidfd."""

    pid: int
    pidfd: int
    caller: socket.socket
    is_command: bool
    name: str


def serve(listener: socket.socket) -> Request:
    """Fork processes until stdin is closed. Returns in each of them, with its request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, Running] = {}
    poll = select.poll()
    for file in (STDIN, listener.fileno()):
        poll.register(file, select.POLLIN)
    while True:
        ready = {file for file, _ in poll.poll()}
        if STDIN in ready:
            break
        for one in list(running.values()):
            if one.pidfd in ready:
                _, status, usage = os.wait4(one.pid, 0)
                _log_cpu(one.name, usage.ru_utime + usage.ru_stime)
                with contextlib.suppress(OSError):  # its caller has ended
                    one.caller.sendall(os.waitstatus_to_exitcode(status).to_bytes(INT_BYTES, signed=True))
                del running[one.pid]
                for file in (one.pidfd, one.caller.fileno()):
                    with contextlib.suppress(KeyError):
                        poll.unregister(file)
                os.close(one.pidfd)
                one.caller.close()
            elif one.caller.fileno() in ready:
                poll.unregister(one.caller.fileno())
                if one.is_command:
                    signal.pidfd_send_signal(one.pidfd, signal.SIGKILL)
        if listener.fileno() in ready:
            caller, _ = listener.accept()
            _import_modules()
            with caller.makefile("rb") as content:
                _, files, _, _ = socket.recv_fds(caller, 1, ABOVE_ALL)
                request: Request = pickle.load(content)
            pid = os.fork()
            if pid == 0:
                for other in (listener, caller, *(one.caller for one in running.values())):
                    other.detach()  # their numbers go to other files
                _take_files(request.numbers, files)
                return request
            for file in files:
                os.close(file)
            one = Running(pid, os.pidfd_open(pid), caller, request.is_command, " ".join(request.arguments[:1]))
            running[pid] = one
            for file in (one.pidfd, caller.fileno()):
                poll.register(file, select.POLLIN)
            with contextlib.suppress(OSError):
                socket.send_fds(caller, [pid.to_bytes(INT_BYTES)], [one.pidfd])
    for one in running.values():
        signal.pidfd_send_signal(one.pidfd, signal.SIGKILL)
        os.waitpid(one.pid, 0)
    sys.exit()


def _log_cpu(name: str, seconds: float) -> None:
    if CPU_LOG in os.environ:
        with open(os.environ[CPU_LOG], "a") as log:  # noqa: PTH123
            log.write(f"{seconds:.3f} {name}\n")


@cache
def _import_modules() -> None:
    from service.cli.app import LAZY_COMMANDS

    commands = (lazy.import_path.partition(":")[0] for lazy in LAZY_COMMANDS.values())
    for name in (*commands, *PARTS, "typer.rich_utils"):
        import_module(name)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "a module starts a thread when it is imported: it cannot be forked"
    gc.freeze()  # processes need not look at what they share


def _take_files(numbers: Sequence[int], files: Sequence[int]) -> None:
    """Keep these files only, under these numbers."""
    above = [fcntl.fcntl(file, fcntl.F_DUPFD, ABOVE_ALL) for file in files]
    os.closerange(0, ABOVE_ALL)
    for number, file in zip(numbers, above, strict=True):
        os.dup2(file, number)
        os.close(file)
    if STDIN not in numbers:
        os.open(os.devnull, os.O_RDONLY)  # the lowest free number


def _run(request: Request) -> int:
    """Run the request in this process, which was forked for it. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    sys.argv = ["convmlp", *request.arguments]
    try:
        if request.module == COMMAND_LINE:
            from service.cli.app import app

            app(prog_name="convmlp", obj=ForkedChild.start)
        else:
            runpy.run_module(request.module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter does
        traceback.print_exc()
        return 1
    return 0


def _main() -> None:
    request = serve(socket.socket(fileno=int(sys.argv[1])))
    status = _run(request)
    if request.is_command:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    _main()
