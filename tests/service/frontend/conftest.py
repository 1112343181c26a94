from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.service.frontend.api.oip.oip_client import Speaker, Spoken, open_spoken
from tests.service.frontend.grpc_server import RpcAtWork, open_rpc
from tests.service.frontend.rest_server import Rest, open_rest


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rest() -> AsyncIterator[Rest]:
    """A front-end that a module's tests share; those that change it, or need other settings, call `open_rest`."""
    async with open_rest() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rpc() -> AsyncIterator[RpcAtWork]:
    """A front-end that a module's tests share; those that change it, or need other settings, call `open_rpc`."""
    async with open_rpc() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def spoken() -> AsyncIterator[Spoken]:
    """Front-ends that a module's tests share; those that change them, or need other settings, call `open_spoken`."""
    async with open_spoken() as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def speaker(request: pytest.FixtureRequest, spoken: Spoken) -> Speaker:
    """Each test that takes it runs over both transports."""
    transport: str = request.param
    return spoken.over(transport)
