from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.convmlp_process import RunningService, running_service


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    """The whole service with the embedded models, shared by tests that do not change its state."""
    with running_service() as running:
        yield running
