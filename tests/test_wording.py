"""The check of words that `make lint` runs."""

from __future__ import annotations

import pytest

from tests.wording import ROOT, files, findings


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ('"""The worker is told of it."""', 1, "told"),
        ("# what it had in\n    # hand", 1, "in hand"),
        ("a = 1\nself._in_hand = 0", 2, "in hand"),
        ("the config says so", 1, "says"),
        ("Answered in the turn.", 1, "the turn"),
        ("class Keeper:", 1, "Keeper"),
    ],
)
def test_finds_words_not_to_be_used(text: str, line: int, word: str) -> None:
    """A word is found in prose and in names, also over a line's end; the finding has the line and an alternative."""
    (found,) = findings("a.py", text)
    assert (found.path, found.line, found.word) == ("a.py", line, word)
    assert found.instead
    assert str(found).startswith(f'a.py:{line}: "{word}": ')


@pytest.mark.parametrize("text", ["return aggregate(doorway)", "each in turn", "tellurium", "a hand in it", "begone"])
def test_passes_other_words(text: str) -> None:
    """Words that only contain one of the list, and common phrases, are fine."""
    assert not list(findings("a.py", text))


def test_reads_the_whole_tree() -> None:
    """Sources, tests, pages, files without a suffix and hidden configuration are read; generated files are not."""
    read = set(files(ROOT))
    assert {"docker/Dockerfile", "docs/deployment.md", "service/settings.py", "tests/fakes.py"} <= read
    assert {".env.example", ".pre-commit-config.yaml", "Makefile", "model/resample.c"} <= read
    assert not [name for name in read if name.startswith(("docker/locks", "model/bundles"))]
