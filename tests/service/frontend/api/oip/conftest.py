from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.service.frontend.api.oip.oip_client import OipClient, OipFrontEnds, open_oip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def oip() -> AsyncIterator[OipFrontEnds]:
    """Front-ends that a module's tests share; those that change them, or need other settings, use `fresh_oip`."""
    async with open_oip() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def fresh_oip(overrides: dict[str, Any]) -> AsyncIterator[OipFrontEnds]:
    """Front-ends and a worker of the test's own, with the settings of its marker `settings`."""
    async with open_oip(**overrides) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, oip: OipFrontEnds) -> OipClient:
    """Each test that takes it runs over both transports."""
    transport: str = request.param
    return oip.over(transport)
