"""What is told of a gRPC call, by the semantic conventions of OpenTelemetry for RPC servers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from service.frontend.exchange import Exchange
from service.frontend.journal import Journal
from service.frontend.rpc.errors import Context
from service.frontend.rpc.turn import context_of


@contextmanager
def told(journal: Journal, exchange: Exchange, method: str, context: Context, *, probe: bool = False) -> Iterator[None]:
    """Whatever is done for a call is done within. `method`: `package.Service/Method`."""
    exchange.method = method
    about = {"rpc.system.name": "grpc", "rpc.method": method}
    with journal.request(exchange, method, partial(context_of, context), about, probe=probe) as span:
        try:
            yield
            exchange.status = "OK"
        except asyncio.CancelledError:
            exchange.status = "CANCELLED"
            raise
        finally:
            # Where it was aborted that has said with what.
            span.set({"rpc.response.status_code": str(exchange.status or "UNKNOWN")})
