"""Who called, behind proxies that add their callers' addresses to a header.

A proxy adds the address that it sees behind what it received, so only what trusted proxies added can be believed: the
addresses are read from the right, up to the first that is not one of theirs.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from service.settings import Settings

MAX_HOPS = 32
"""Addresses that are looked at."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_FORWARDED_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_FORWARDED_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*(?:"([^"]*)"|([^;,"\s]*))', re.IGNORECASE)
_WITH_PORT = re.compile(r"\[([^\]]+)\](?::\d+)?|([\d.]+):\d+")


class TrustedProxies:
    """`header` has a request's addresses, in lower case: `x-forwarded-for`, or `forwarded` (RFC 7239)."""

    def __init__(self, networks: Iterable[str], header: str) -> None:
        self.header = header
        self._networks: Sequence[_Network] = [ipaddress.ip_network(network) for network in networks]
        self._is_trusted = lru_cache(maxsize=4096)(self._find)

    def caller(self, peer: str, values: Sequence[str]) -> str:
        """The address of the caller.

        Args:
            peer: the address of the connection's other end.
            values: those of the header, in the order of its lines.

        Returns:
            The last address that no trusted proxy has; where all are theirs, or the next is hidden, the first of those
            that are known.
        """
        caller = peer
        if not self._is_trusted(peer):
            return caller
        addresses = _forwarded(values) if self.header == "forwarded" else ",".join(values).split(",")
        for text in addresses[: -MAX_HOPS - 1 : -1]:
            address = _address(text.strip())
            if address is None:
                break
            caller = address
            if not self._is_trusted(address):
                break
        return caller

    def _find(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:  # a Unix socket has no address
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)


def trusted_proxies(settings: Settings) -> TrustedProxies | None:
    """The proxies in the settings; None where no header is believed."""
    if not settings.trusted_proxies:
        return None
    return TrustedProxies(settings.trusted_proxies, settings.forwarded_header)


def _forwarded(values: Sequence[str]) -> list[str]:
    """The parameter `for` of each element; empty where there is none."""
    elements = _FORWARDED_ELEMENT.findall(",".join(values))
    found = (_FORWARDED_FOR.search(element) for element in elements)
    return [(match[1] or match[2] or "") if match else "" for match in found]


def _address(text: str) -> str | None:
    """An address without its port; None for a hidden one (`unknown`, `_name`) and for anything else."""
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[2]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
