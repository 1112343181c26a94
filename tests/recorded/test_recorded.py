"""What callers and operators see, against what was recorded of it."""

from __future__ import annotations

import pytest

from tests.recorded.recording import FOLDER, differences, read, record

MAX_LINES = 30
"""Of a difference that are shown."""


async def test_what_users_see_is_as_recorded() -> None:
    """Answers, OpenAPI, help texts, metrics and log lines change on purpose only: with the files that record them."""
    found: dict[str, str] = {}
    for name, entries in (await record()).items():
        found |= differences(name, read(FOLDER / name), entries)
    if found:
        pytest.fail(_report(found), pytrace=False)


def _report(found: dict[str, str]) -> str:
    shown = []
    for where, text in found.items():
        lines = text.splitlines()
        more = [f"… {len(lines) - MAX_LINES} more lines"] if len(lines) > MAX_LINES else []
        shown.append("\n".join([f"## {where}", *lines[:MAX_LINES], *more]))
    names = "\n".join(f"  {where}" for where in found)
    return "\n\n".join(
        [
            f"{len(found)} recorded entries differ:\n{names}",
            *shown,
            "Where the change is meant, `python -m tests.recorded` records anew; commit the files with it.",
        ]
    )
