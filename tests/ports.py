"""Ports of 127.0.0.1 that are closed, and that no other process gets meanwhile.

One that was free a moment ago may be another test's by now, for tests run side by side.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from service.process import hold_port

HOST = "127.0.0.1"


@contextmanager
def closed_port() -> Iterator[int]:
    """A port where connections are refused, unless `listen_beside` or a gRPC server of this user opens it."""
    with hold_port(HOST, 0) as held:
        yield held.getsockname()[1]


def listen_beside(port: int) -> socket.socket:
    """A listener that may share its port, as gRPC's servers do."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((HOST, port))
    listener.listen()
    return listener
