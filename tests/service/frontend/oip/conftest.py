from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.service.frontend.oip.speaking import Speaker, Spoken, open_spoken


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
