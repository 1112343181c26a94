"""Ports that are held for processes which open them themselves, and limits of open files."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from service.process import OTHER_FILES, address_of, connection_limit, hold_port, open_listener
from tests.ports import listen_beside
from tests.waiting import PATIENCE_S

LOOPBACK = "127.0.0.1"


def refused(take: Callable[[str, int], socket.socket], port: int) -> bool:
    try:
        take(LOOPBACK, port).close()
    except OSError:
        return True
    return False


def test_a_held_port_is_for_its_own_listeners_alone() -> None:
    """Several listeners of a held port get all its connections; no other process can hold it or listen at it."""
    with hold_port(LOOPBACK, 0) as held:
        port = held.getsockname()[1]
        assert (refused(hold_port, port), refused(open_listener, port)) == (True, True)
        with listen_beside(port) as first, listen_beside(port) as second:
            assert (refused(hold_port, port), refused(open_listener, port)) == (True, True)
            for listener in (first, second):
                listener.setblocking(False)
            for _ in range(32):
                with socket.create_connection((LOOPBACK, port), timeout=PATIENCE_S):
                    assert any(_accepts(listener) for listener in (first, second))
        assert (refused(hold_port, port), refused(open_listener, port)) == (True, True)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LOOPBACK, port), timeout=PATIENCE_S)


def _accepts(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_a_port_is_free_again_at_once() -> None:
    """A port can be bound again at once, even while its old connections linger."""
    with hold_port(LOOPBACK, 0) as held:
        port = held.getsockname()[1]
        with listen_beside(port) as listener, socket.create_connection((LOOPBACK, port), timeout=PATIENCE_S) as caller:
            listener.accept()[0].close()  # the side that closes first keeps the lingering end
            assert caller.recv(1) == b""
    hold_port(LOOPBACK, port).close()


@pytest.mark.parametrize("take", [open_listener, listen_beside])
def test_a_port_in_use_is_not_held(take: Callable[..., socket.socket]) -> None:
    """A port in use cannot be held, whether its listener is exclusive or shares it within its user."""
    with open_listener(LOOPBACK, 0) if take is open_listener else listen_beside(0) as other:
        assert refused(hold_port, other.getsockname()[1])


def test_addresses_are_written_as_in_a_url() -> None:
    """An IPv6 address is in brackets."""
    with hold_port(LOOPBACK, 0) as four:
        assert address_of(four) == f"127.0.0.1:{four.getsockname()[1]}"
    if socket.has_dualstack_ipv6():
        with hold_port("::1", 0) as six:
            assert address_of(six) == f"[::1]:{six.getsockname()[1]}"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_any_address_of_ipv6_is_any_of_ipv4_as_well() -> None:
    """A listener at `::`, as one of gRPC, takes connections of both kinds."""
    with open_listener("::", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"[::]:{port}"
        for host in ("::1", LOOPBACK):
            with socket.create_connection((host, port), timeout=PATIENCE_S):
                listener.accept()[0].close()


def test_processes_may_open_as_many_files_as_their_user() -> None:
    """A process with a low limit raises it as far as it may, and takes no more connections than it allows."""
    script = f"""
import resource
from service.process import allow_many_files, connection_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (300, {OTHER_FILES + 1000}))
print(connection_limit(10), connection_limit(4096))
allow_many_files()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], connection_limit(10), connection_limit(4096))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    lines = [line for line in ran.stdout.splitlines() if "max_connections" not in line]
    low, high = ([int(number) for number in line.split()] for line in lines)
    assert low[0] == 10
    assert low[1] < 300
    assert high[:2] == [OTHER_FILES + 1000, 10]
    assert 900 < high[2] < 1000


def test_the_limit_leaves_files_for_everything_else() -> None:
    """No limit of connections is so high that the process could open no file."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert connection_limit(10**9) + OTHER_FILES <= soft
