from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.training.photographs import write_photographs


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Ten made-up photographs in the data set's layout."""
    return write_photographs(tmp_path / "pets")
