from __future__ import annotations

import pytest

from tests.conftest import HERE, SERIAL, SLOW, matches


@pytest.mark.parametrize("pattern", [*SERIAL, *SLOW])
def test_every_pattern_is_of_a_test(pattern: str) -> None:
    """A file that moves takes its line in the table along."""
    assert any(matches(path.relative_to(HERE), (pattern,)) for path in HERE.rglob("test_*.py"))
