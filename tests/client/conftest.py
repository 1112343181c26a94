from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from tests.client.local_service import TRANSPORTS, VARIANTS, LocalService, Variant, open_service

# A busy machine may pause a test for longer than Hypothesis allows an example.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")


@pytest.fixture(scope="module")
def service() -> Iterator[LocalService]:
    """A service that the tests of a module share. Tests that change it or need other settings use `fresh_service`."""
    with open_service() as running:
        yield running


@pytest.fixture
def fresh_service(overrides: dict[str, Any]) -> Iterator[LocalService]:
    """A service of the test's own, with the settings of its marker `settings`."""
    with open_service(**overrides) as running:
        yield running


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> Variant:
    """Each combination of client and transport: sync and async, REST and gRPC."""
    return VARIANTS[request.param]


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """Each transport."""
    name: str = request.param
    return name
