from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.zoo.download_client import CONTENT, DownloadClient
from tests.model.zoo.scripted_server import Server, scripted_server


@pytest.fixture
def client(tmp_path: Path) -> DownloadClient:
    return DownloadClient(tmp_path / "store")


@pytest.fixture
def server() -> Iterator[Server]:
    with scripted_server(CONTENT) as running:
        yield running
