"""What a process does with memory that it has freed: it keeps it for the next picture.

By default glibc gives large blocks back to the kernel as soon as they are free and takes them anew for the next batch,
page by page and each of them zeroed: on two cores a fifth of a worker's time. It also gives each thread an arena of its
own, where each grows to what its greatest batch once took. Here one arena serves all threads (those that allocate
much are few, and Python's small objects are not glibc's), and keeps up to `KEPT_BYTES` that are free.

What every process of the service does alike: its name, logs, signals, and the lifeline to its supervisor.

Signals are owned here and nowhere else, from `run_process` on; before that there is nothing to end gracefully.
SIGTERM or SIGINT asks for a graceful end; a second one ends at once.
A supervised process also ends when its supervisor is gone, however that came about: the kernel closes the
supervisor's end of a pipe, the lifeline.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from service.observability.exposition import join_metrics
from service.observability.logs import configure_logs
from service.settings import Settings

KEPT_BYTES = 256 << 20
MAPPED_FROM_BYTES = 32 << 20
"""Blocks of this size and more are still taken from the kernel and given back one by one."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_OPTIONS = {
    "MALLOC_ARENA_MAX": (_M_ARENA_MAX, 1),
    "MALLOC_TRIM_THRESHOLD_": (_M_TRIM_THRESHOLD, KEPT_BYTES),
    # Setting the one above fixes this one at its first value, 128 KiB, at which every tensor would be mapped.
    "MALLOC_MMAP_THRESHOLD_": (_M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
}
"""By the environment variable with which an operator may decide otherwise."""


def keep_freed_memory() -> None:
    """Call before the process starts threads. Without glibc it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for variable, (option, value) in _OPTIONS.items():
        if variable not in os.environ:
            mallopt(option, value)


LIFELINE_FD = "CONVMLP_LIFELINE_FD"
LISTEN_FD = "CONVMLP_LISTEN_FD"
ROLE = "CONVMLP_ROLE"

EXIT_CONFIG = 78
"""The process cannot work as it is configured: starting it again would not help (BSD's EX_CONFIG)."""
EXIT_WEDGED = 75
"""The process is beyond help but another may do (BSD's EX_TEMPFAIL)."""

COLLECT_AFTER = 10_000
"""New objects until the collector looks for cycles; Python's own 700 are some twenty requests'."""

log = structlog.get_logger(__name__)


def run_process(kind: str, settings: Settings, main: Callable[[asyncio.Event], Awaitable[int]]) -> int:
    """Run `main` until it returns its exit status; it should do so soon after the given event is set."""
    keep_freed_memory()
    role = os.environ.pop(ROLE, kind)
    lifeline = os.environ.pop(LIFELINE_FD, None)
    configure_logs(settings.log_level, settings.log_format, role)
    join_metrics(role)
    # What was imported stays: the collector need not look at it again and again, nor so often at what requests make.
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_main(main, int(lifeline) if lifeline is not None else None))


def open_listener(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises OSError where the address cannot be had."""
    return socket.create_server((host, port), family=_family(host), backlog=1024)


def hold_port(host: str, port: int) -> socket.socket:
    """A TCP socket that holds the port and does not listen: processes of this service may listen there, nobody else.

    For servers that insist on opening their port themselves, with SO_REUSEPORT so that several can. That option
    alone would let another service of the same user join them unnoticed, and take half of the calls.

    Raises:
        OSError: the address cannot be had.
    """
    held = socket.socket(_family(host))
    try:
        # Connections of a predecessor that linger (TIME_WAIT) are no obstacle; everything else is.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        held.close()
        raise
    return held


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def address_of(bound: socket.socket) -> str:
    """`HOST:PORT`, as in a URL."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def inherited_socket() -> socket.socket | None:
    """The socket of `open_listener` or `hold_port` that the supervisor handed over, if any: it outlives a restart."""
    fd = os.environ.pop(LISTEN_FD, None)
    return socket.socket(fileno=int(fd)) if fd is not None else None


async def _main(main: Callable[[asyncio.Event], Awaitable[int]], lifeline: int | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, end)
    if lifeline is None:
        loop.add_signal_handler(signal.SIGINT, end)
    else:
        # Ctrl-C reaches the whole process group; the order of ending is the supervisor's business.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        def supervisor_gone() -> None:
            loop.remove_reader(lifeline)
            log.warning("the supervisor is gone; ending")
            stop.set()

        loop.add_reader(lifeline, supervisor_gone)
    return await main(stop)
