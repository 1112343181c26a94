"""Who may ask, and how much: the check that every transport makes before it reads an image.

A transport calls `identify` once a request (a gRPC stream: once), `admit` once an image that it is about to take
in, and `charge` for further images that it found in a body. Nothing here waits or reads a file.

Open to everyone: health and readiness (`/livez`, `/readyz`, `/v2/health/*`, `grpc.health.v1`), `/metrics`, gRPC
reflection, the pages and `/openapi.json`. All else needs a key where keys are set.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import NewType
from urllib.parse import unquote

from service.errors import RateLimited, Refusal, Unauthenticated
from service.frontend.keys import ApiKeys
from service.frontend.rate import RateLimit
from service.metrics import FrontEndMetrics
from service.settings import Settings

Caller = NewType("Caller", str)
"""Whose rate a request counts against: a key's name, or a host. Never a key, so it may be logged."""

ASK_FOR_KEY = "send the header `Authorization: Bearer KEY` (in gRPC: the metadata `authorization`)"


class Gate:
    """One for a front-end process, shared by its transports; rates are this process's own.

    `keys`: None lets everyone in. `limit`: None takes as much as comes.
    """

    def __init__(self, keys: ApiKeys | None, limit: RateLimit | None, metrics: FrontEndMetrics) -> None:
        self._keys = keys
        self._limit = limit
        self._metrics = metrics

    @property
    def needs_key(self) -> bool:
        return self._keys is not None

    def identify(self, authorization: str | None, host: str) -> Caller:
        """Who is asking. `authorization` is the header's whole value; `host` the peer's address, without its port.

        Raises:
            Unauthenticated: keys are set, and none or a wrong one came.
        """
        if self._keys is None:
            return Caller(_network_of(host) if self._limit is not None else host)
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            self._metrics.rejected(Refusal.CREDENTIALS)
            raise Unauthenticated(f"this service asks for an API key and none came; {ASK_FOR_KEY}")
        name = self._keys.name_of(key)
        if name is None:
            self._metrics.rejected(Refusal.CREDENTIALS)
            raise Unauthenticated(f"the API key is not one that this service knows; {ASK_FOR_KEY}")
        return Caller(name)

    def admit(self, caller: Caller) -> None:
        """Let one image of the caller's in.

        Raises:
            RateLimited: the caller is over its rate; `retry_after_s` is the time until its next image is let in.
        """
        if self._limit is None:
            return
        wait_s = self._limit.take(caller)
        if wait_s > 0:
            self._metrics.rejected(Refusal.RATE)
            raise RateLimited(
                f"more than {self._limit.per_s:g} images a second came from this caller; try again in {wait_s:.3g} s",
                wait_s,
            )

    def charge(self, caller: Caller, images: int) -> None:
        """Count `images` more of a request that was let in as one image; the caller's next ones wait for it."""
        if self._limit is not None:
            self._limit.charge(caller, images)


@asynccontextmanager
async def open_gate(settings: Settings, metrics: FrontEndMetrics) -> AsyncIterator[Gate]:
    """The gate that the settings describe; the file of keys is read again whenever it changes.

    Raises:
        KeysUnusable: the file of keys cannot be used now.
    """
    limit = RateLimit(settings.rate_limit_per_s, settings.rate_limit_burst) if settings.rate_limit_per_s else None
    if settings.api_keys_file is None:
        yield Gate(None, limit, metrics)
        return
    keys = ApiKeys(settings.api_keys_file)
    following = asyncio.create_task(keys.follow())
    try:
        yield Gate(keys, limit, metrics)
    finally:
        following.cancel()


def host_of(peer: str) -> str:
    """The host in what gRPC calls a peer: `ipv4:127.0.0.1:5000`, `ipv6:%5B::1%5D:5000`, `unix:...`."""
    kind, _, address = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    return unquote(address).rpartition(":")[0].strip("[]")


@lru_cache(maxsize=4096)
def _network_of(host: str) -> str:
    """The address itself; of IPv6 its /64, for whoever has one address there has them all."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket has no address
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
