"""Which hosts URLs may name, and which addresses a connection may go to.

The addresses that are not public are those of IANA's registries of special-purpose addresses (RFC 6890). Python's
`is_global` is not used: what it returns differs among patch releases of Python.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

DEFAULT_PORTS = {"http": 80, "https": 443}

_NOT_PUBLIC_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network, and the unspecified address
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local; the metadata services of clouds
            "172.16.0.0/12",
            "192.0.0.0/24",  # IETF protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_PUBLIC_V6 = IPv6Network("2000::/3")
"""Global unicast. Loopback, link-local, unique-local and multicast addresses are outside it."""
_NOT_PUBLIC_V6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # IETF protocol assignments, Teredo among them
            "2001:db8::/32",  # documentation
            "3fff::/20",
        ),
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_6TO4 = IPv6Network("2002::/16")


@dataclass(frozen=True, slots=True)
class HostRule:
    """One entry of an allow-list: `name`, or with `below` every name below it. `port` is None for the scheme's own."""

    name: str
    below: bool
    port: int | None

    def allows(self, scheme: str, host: str, port: int) -> bool:
        if port != (self.port or DEFAULT_PORTS[scheme]):
            return False
        return host.endswith(f".{self.name}") if self.below else host == self.name


def host_rule(text: str) -> HostRule:
    """The rule of `NAME`, `*.NAME`, an address, or `[ADDRESS]` of IPv6, each with or without `:PORT`."""
    name, separator, port = text.rpartition(":")
    if not separator or text.endswith("]"):
        name, port = text, ""
    below = name.startswith("*.")
    return HostRule(normal_host(name.removeprefix("*.").strip("[]")), below, int(port) if port else None)


def normal_host(host: str) -> str:
    """A host in the one form in which hosts are compared."""
    host = host.lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


class AddressPolicy:
    """Allows public addresses, and those of `opened` networks."""

    def __init__(self, opened: Iterable[str] = ()) -> None:
        self._opened: tuple[Network, ...] = tuple(map(ipaddress.ip_network, opened))

    def allows(self, address: Address) -> bool:
        """An IPv6 address that carries an IPv4 address is judged by that."""
        address = carried_v4(address) or address
        if any(address in network for network in self._opened):
            return True
        if isinstance(address, IPv4Address):
            return not any(address in network for network in _NOT_PUBLIC_V4)
        return address in _PUBLIC_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


def carried_v4(address: Address) -> IPv4Address | None:
    """The IPv4 address in one of IPv6 that is mapped to it (RFC 4291), translated (NAT64, RFC 6052) or 6to4 (RFC 3056).

    An address of NAT64 with another prefix looks like any other. The operator of such a network is trusted not to
    translate to private addresses.
    """
    if not isinstance(address, IPv6Address):
        return None
    if address in _MAPPED or address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return IPv4Address(int(address) >> 80 & 0xFFFF_FFFF) if address in _6TO4 else None
