from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.service.observability.span_capture import Traced, traced_service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service() -> AsyncIterator[Traced]:
    """A traced service that a module's tests share; those that need other flags open `traced_service`."""
    async with traced_service() as running:
        yield running
