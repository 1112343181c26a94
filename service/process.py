"""What all processes of the service share: role, logs, signals, memory allocator, sockets, the supervisor's lifeline.

Only this module handles signals. SIGTERM or SIGINT starts a graceful shutdown; a second one ends the process at once.
A supervised process has a lifeline, a socket whose other end is the supervisor's. It sends beats there, so that the
supervisor finds out when its event loop stops. It shuts down when the supervisor dies in any way: the kernel then
closes the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop

from service.observability.exposition import join_metrics
from service.observability.logs import configure_logs
from service.settings import Settings

LIFELINE_FD = "CONVMLP_LIFELINE_FD"
LISTEN_FD = "CONVMLP_LISTEN_FD"
ROLE = "CONVMLP_ROLE"

EXIT_CONFIG = 78
"""Exit status: the configuration is wrong, a restart would not help (BSD's EX_CONFIG)."""

EXIT_WEDGED = 75
"""Exit status: the process is stuck, a restart may help (BSD's EX_TEMPFAIL)."""

BEAT_INTERVAL_S = 0.5
"""Between two beats of a supervised process."""
EXIT_GRACE_S = 5.0
"""How long a process may take beyond the drain time after its supervisor died."""

COLLECT_AFTER = 10_000
"""New objects between collections of cycles. Python's default of 700 is reached within some twenty requests."""

OTHER_FILES = 256
"""Descriptors that a front-end needs beside its connections: for probes beyond their limit, workers, logs, metrics."""
CLOSING = 16
"""One in so many connections may just be closing, beyond their limit."""
MIN_CONNECTIONS = 16

ANY_IPV6 = "::"

IDLE_WINDOW_S = 10.0
IDLE_SHARE = 0.05
"""A process that used less than this share of one core in a window is idle, and gives back what the allocator keeps."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeptMemory:
    """What the allocator keeps of freed memory."""

    nbytes: int = 256 << 20
    """Free memory that it keeps."""
    mapped_from_bytes: int = 32 << 20
    """Blocks of this size and more are mapped and unmapped one by one."""


BATCHES = KeptMemory()
"""For processes that take the same memory again and again."""


def run_process(
    kind: str,
    settings: Settings,
    main: Callable[[asyncio.Event], Awaitable[int]],
    kept: KeptMemory = BATCHES,
) -> int:
    """Run `main` until it returns the exit status, which it should do soon after its event is set."""
    keep_freed_memory(kept)
    allow_many_files()
    role = os.environ.pop(ROLE, kind)
    lifeline = os.environ.pop(LIFELINE_FD, None)
    configure_logs(settings.log_level, settings.log_format, role)
    join_metrics(role)
    # Imported objects live as long as the process: the collector skips them, and runs less often.
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run_main(main, settings, socket.socket(fileno=int(lifeline)) if lifeline else None))


class CannotListen(Exception):
    """A port, which a flag of the command gives, cannot be used."""

    def __init__(self, flag: str, port: int, error: OSError) -> None:
        # asyncio puts words of its own before the system's.
        self.reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        super().__init__(f"port {port}: {self.reason}")
        self.port = port
        self.remedy = f"free the port, or give another {flag} or --host"

    def log(self, host: str) -> None:
        log.error("cannot listen", host=host, port=self.port, error=self.reason, remedy=self.remedy)


@contextlib.contextmanager
def port_errors(flag: str, port: int) -> Iterator[None]:
    """Turns an OSError inside the context into CannotListen."""
    try:
        yield
    except OSError as error:
        raise CannotListen(flag, port, error) from error


def open_listener(host: str, port: int) -> socket.socket:
    """A listening TCP socket; at `::` for IPv4 as well. Raises OSError if the address is not available."""
    dual = host == ANY_IPV6 and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=_family(host), backlog=1024, dualstack_ipv6=dual)


def hold_port(host: str, port: int) -> socket.socket:
    """A bound TCP socket that does not listen: it reserves the port for processes of this service.

    For servers that open their port themselves with SO_REUSEPORT, so that several can share it. That option alone
    would let another service of the same user bind the port unnoticed and receive half of the calls.

    Raises:
        OSError: the address is not available.
    """
    held = socket.socket(_family(host))
    try:
        # Connections of a predecessor in TIME_WAIT do not prevent binding; everything else does.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        held.close()
        raise
    return held


def address_of(bound: socket.socket) -> str:
    """The address of a bound socket as `HOST:PORT`, as in a URL."""
    host, port = bound.getsockname()[:2]
    return host_port(host, port)


def host_port(host: str, port: int) -> str:
    """`HOST:PORT` as in a URL: IPv6 addresses have brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def inherited_socket() -> socket.socket | None:
    """The supervisor's socket of `open_listener` or `hold_port`, if the process is supervised: it survives restarts."""
    fd = os.environ.pop(LISTEN_FD, None)
    return socket.socket(fileno=int(fd)) if fd is not None else None


def allow_many_files() -> None:
    """Raise the process's limit of open files as far as its user may: many systems begin with 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems report more than they allow
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connection_limit(wanted: int) -> int:
    """The limit of a front-end's connections: as wanted, or what its limit of open files allows."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = (files - OTHER_FILES) * CLOSING // (CLOSING + 1)
    if files == resource.RLIM_INFINITY or possible >= wanted:
        return wanted
    possible = max(MIN_CONNECTIONS, possible)
    log.warning(
        "fewer connections than max_connections: the process may open too few files",
        max_connections=wanted,
        connections=possible,
        open_files_limit=files,
    )
    return possible


def keep_freed_memory(kept: KeptMemory = BATCHES) -> None:
    """Let glibc keep freed memory for the next batch. Call it before the process starts threads.

    By default glibc returns large blocks to the kernel at once and maps them again for the next batch, page by page
    and zeroed: a fifth of a worker's time on two cores. It also gives each thread an arena, each of which grows to its
    largest batch. Here one arena serves all threads: few of them allocate much, and Python's small objects do not
    come from glibc. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # By the environment variable with which an operator can override it.
    options = {
        "MALLOC_ARENA_MAX": (_M_ARENA_MAX, 1),
        "MALLOC_TRIM_THRESHOLD_": (_M_TRIM_THRESHOLD, kept.nbytes),
        # Setting the one above freezes this one at its default of 128 KiB, at which every tensor would be mapped.
        "MALLOC_MMAP_THRESHOLD_": (_M_MMAP_THRESHOLD, kept.mapped_from_bytes),
    }
    for variable, (option, value) in options.items():
        if variable not in os.environ:
            mallopt(option, value)


class _MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


if _mallinfo is not None:
    _mallinfo.restype = _MallInfo


def used_memory() -> int:
    """Bytes that C libraries and large Python objects have allocated and not freed. Without glibc 2.33 or later the
    memory that the process occupies, which is more."""
    if _mallinfo is None:
        return resident_memory()
    info = _mallinfo()
    used: int = info.uordblks + info.hblkhd
    return used


def resident_memory() -> int:
    """Bytes of memory that the process occupies; 0 where the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def trim_memory() -> None:
    """Return freed memory to the kernel. Takes some 0.1 ms for each MB, and other threads' allocations wait for it."""
    if _trim is not None:
        _trim(0)


async def release_when_idle(window_s: float = IDLE_WINDOW_S) -> None:
    """Return freed memory to the kernel in the first idle window after a busy one, until cancelled.

    The next request takes it back page by page, which a busy process would have to do all the time.
    """
    busy, used_s = True, time.process_time()
    while True:
        await asyncio.sleep(window_s)
        before_s, used_s = used_s, time.process_time()
        is_idle = used_s - before_s < IDLE_SHARE * window_s
        if is_idle and busy:
            await asyncio.to_thread(trim_memory)
        busy = not is_idle


async def _run_main(
    main: Callable[[asyncio.Event], Awaitable[int]], settings: Settings, lifeline: socket.socket | None
) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def shut_down() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, shut_down)
    background = [asyncio.create_task(release_when_idle(), name="memory")]
    if lifeline is None:
        loop.add_signal_handler(signal.SIGINT, shut_down)
    else:
        # Ctrl-C reaches the whole process group; the supervisor decides the order of shutdown.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        limit_s = settings.drain_timeout_ms / 1000 + EXIT_GRACE_S
        # A thread, because an event loop that hangs would outlive the supervisor.
        waiting = threading.Thread(target=_wait_for_supervisor, args=(lifeline, loop, stop, limit_s), daemon=True)
        waiting.start()
        background.append(asyncio.create_task(_beat(lifeline), name="lifeline"))
    try:
        return await main(stop)
    finally:
        for task in background:
            task.cancel()


async def _beat(lifeline: socket.socket) -> None:
    while True:
        with contextlib.suppress(OSError):  # the supervisor is stopped, or has died
            lifeline.send(b".", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        await asyncio.sleep(BEAT_INTERVAL_S)


def _wait_for_supervisor(
    lifeline: socket.socket, loop: asyncio.AbstractEventLoop, stop: asyncio.Event, limit_s: float
) -> None:
    """Wait until the supervisor has died; then shut down, within a limit."""
    with contextlib.suppress(OSError):
        lifeline.recv(1)  # it never sends anything
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(stop.set)
    log.warning("supervisor exited; shutting down")
    time.sleep(limit_s)
    os._exit(1)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
