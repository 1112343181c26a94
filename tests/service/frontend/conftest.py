from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.service.frontend.certificates import Authority, authority_in
from tests.service.frontend.grpc_server import RpcWithWorker, open_rpc
from tests.service.frontend.rest_server import Rest, open_rest


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return authority_in(tmp_path / "one")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rest() -> AsyncIterator[Rest]:
    """A front-end that a module's tests share; those that change it, or need other settings, use `fresh_rest`."""
    async with open_rest() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rpc() -> AsyncIterator[RpcWithWorker]:
    """A front-end that a module's tests share; those that change it, or need other settings, use `fresh_rpc`."""
    async with open_rpc() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def fresh_rest(overrides: dict[str, Any]) -> AsyncIterator[Rest]:
    """A front-end and a worker of the test's own, with the arguments of its marker `settings`."""
    async with open_rest(**overrides) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def fresh_rpc(overrides: dict[str, Any]) -> AsyncIterator[RpcWithWorker]:
    """A front-end and a worker of the test's own, with the arguments of its marker `settings`."""
    async with open_rpc(**overrides) as running:
        yield running
