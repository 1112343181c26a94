from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.zoo.fetching import CONTENT, Client
from tests.model.zoo.server import Server, serving


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path / "store")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(CONTENT) as running:
        yield running
