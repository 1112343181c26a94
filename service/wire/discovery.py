"""Workers by a name of DNS: every address that it has is one, as in a headless Service of Kubernetes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import structlog

from service.wire.members import Members, following
from service.wire.pool import WorkerPool

SCHEME = "dns://"
LOOK_S = 2.0
"""Between two looks. Resolvers keep an answer for as long as its zone sets, 5 to 30 s in Kubernetes."""

log = structlog.get_logger(__name__)


def fixed(addresses: Sequence[str]) -> list[str]:
    """The addresses that are no names."""
    return [address for address in addresses if not address.startswith(SCHEME)]


@asynccontextmanager
async def follow_names(
    pool: WorkerPool, addresses: Sequence[str], drain_s: float
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Keep the workers of `pool` those that the names among `addresses` have, and those at the `fixed` ones.

    It gives what waits until the first workers have reported, without a bound if there are no names. `drain_s` bounds
    the drain of a worker that leaves.
    """
    names = [address for address in addresses if address.startswith(SCHEME)]
    if not names:
        yield pool.wait_for_state
        return
    members = Members(pool, addresses, drain_s)
    for address in fixed(addresses):
        members.report(address, [address])
    async with following(members, _resolve(members, names)):
        yield members.wait_for_workers


async def _resolve(members: Members, names: Collection[str]) -> None:
    failing: set[str] = set()
    while True:
        for name in names:
            host, _, port = name.removeprefix(SCHEME).rpartition(":")
            try:
                found = await asyncio.get_running_loop().getaddrinfo(
                    host.strip("[]"), int(port), type=socket.SOCK_STREAM
                )
            except OSError as error:
                if name not in failing:
                    log.warning("the workers' name has no address", name=name, error=error.strerror or str(error))
                failing.add(name)
            else:
                failing.discard(name)
                members.report(name, {_address(place[0], int(place[1])) for *_, place in found})
        await asyncio.sleep(LOOK_S)


def _address(host: str | int, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in str(host) else f"tcp://{host}:{port}"
