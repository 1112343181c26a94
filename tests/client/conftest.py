from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.local_service import WAYS, Service, Way, open_service


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service that a module's tests share; those that change it, or need other settings, call `open_service`."""
    with open_service() as running:
        yield running


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    """Each of the four: sync and async, REST and gRPC."""
    return WAYS[request.param]
