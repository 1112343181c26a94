from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.service.frontend.api.oip.oip_client import OipClient, OipFrontEnds, open_oip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def oip() -> AsyncIterator[OipFrontEnds]:
    """Front-ends that a module's tests share; tests that change them, or need other settings, call `open_oip`."""
    async with open_oip() as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, oip: OipFrontEnds) -> OipClient:
    """Each test that takes it runs over both transports."""
    transport: str = request.param
    return oip.over(transport)
