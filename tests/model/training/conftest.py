from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.training.pets_dataset import write_photographs


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Ten synthetic photographs in the dataset's layout."""
    return write_photographs(tmp_path / "pets")
