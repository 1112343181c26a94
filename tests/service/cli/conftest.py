from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service.frontend.grpc_server import open_rpc_at
from tests.service.frontend.rest_server import Rest, open_rest, picture


@pytest.fixture
async def rest() -> AsyncIterator[Rest]:
    """A REST front-end with default settings and a worker whose device is a fake."""
    async with open_rest() as running:
        yield running


@pytest.fixture
async def grpc_url(rest: Rest) -> AsyncIterator[str]:
    """A gRPC front-end beside the REST one, with the same worker."""
    async with open_rpc_at(rest.worker.address, rest.settings) as rpc:
        yield f"grpc://127.0.0.1:{rpc.port}"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """More images than a command sends at once, each of its own grey level and width."""
    paths = [tmp_path / f"{grey}.png" for grey in range(100, 112)]
    for path in paths:
        path.write_bytes(picture(int(path.stem), width=60 + int(path.stem) % 7))
    return [str(path) for path in paths]
