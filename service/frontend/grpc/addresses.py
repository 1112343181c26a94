"""Where a gRPC server answers probes, whatever connections its callers have.

gRPC limits the connections of each listener, and closes further ones whatever they are for. So there is a listener
beside the one for callers: on the loopback interface where that one is on all interfaces, else at an abstract socket
of Linux, which has neither a file nor a port that another program could have.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

from service.process import host_port

LOOPBACKS = {"0.0.0.0": ("127.0.0.1",), "::": ("127.0.0.1", "::1")}
"""Of each address that stands for all interfaces. The kernel prefers the listener at the narrower address."""
ABSTRACT = "unix-abstract:"
"""What gRPC's name of an abstract socket begins with."""


def probe_listeners(host: str, port: int) -> Sequence[str]:
    """gRPC's names of the listeners beside that of a server at `host`, an IP address."""
    if host in LOOPBACKS:
        return [host_port(one, port) for one in LOOPBACKS[host]]
    return [f"{ABSTRACT}convmlp-grpc-{host_port(host, port)}"] if sys.platform == "linux" else []


def is_taken(listener: str) -> bool:
    """Whether another process has this abstract socket: a server that shares the port."""
    if not listener.startswith(ABSTRACT):
        return False
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.bind(f"\0{listener.removeprefix(ABSTRACT)}")
        except OSError:
            return True
    return False


def connect_for_probe(host: str, port: int, timeout_s: float) -> tuple[socket.socket, str]:
    """Connect to the server that was started with this host or name, and this port.

    Returns the connection, and gRPC's name of what it leads to.

    Raises:
        OSError: it cannot be reached.
    """
    ip: str = socket.getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM)[0][4][0]  # type: ignore[assignment]
    for listener in probe_listeners(ip, port):
        if listener.startswith(ABSTRACT):
            one = socket.socket(socket.AF_UNIX)
            one.settimeout(timeout_s)
            try:
                one.connect(f"\0{listener.removeprefix(ABSTRACT)}")
            except OSError:
                one.close()
            else:
                return one, listener
    ip = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)
    return socket.create_connection((ip, port), timeout_s), host_port(ip, port)
