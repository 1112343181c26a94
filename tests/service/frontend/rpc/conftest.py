from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.service.frontend.rpc.running import RpcAtWork, open_rpc


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rpc() -> AsyncIterator[RpcAtWork]:
    """A front-end that a module's tests share; those that change it, or need other settings, call `open_rpc`."""
    async with open_rpc() as running:
        yield running
