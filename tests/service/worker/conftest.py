from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.service.worker.dispatcher_bench import DispatcherBench, dispatcher_bench


@pytest.fixture
async def bench(overrides: dict[str, Any]) -> AsyncIterator[DispatcherBench]:
    """A dispatcher with a fake device and a fake clock, with the arguments of the test's marker `settings`."""
    async with dispatcher_bench(**overrides) as running:
        yield running
