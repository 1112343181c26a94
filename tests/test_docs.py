"""What the Markdown pages refer to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "client/README.md"])


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page leads to a file, and to a heading of it where it has a fragment."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_architecture_names_modules_that_exist() -> None:
    """Every module and folder that the page and its drawing name is in the tree."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/.]+(?:\.py|/))`", page))
    drawing = (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")
    for line in re.findall(r'<text class="code".*?>(.*?)</text>', drawing):
        for folder, several, one in re.findall(r"((?:frontend|wire|worker|model)[\w/]*/)(?:\{([\w,]+)\}|(\w+))", line):
            named |= {folder + name for name in several.split(",") if name} | ({folder + one} if one else set())
    assert len(named) > 40
    for name in named:
        inside = ROOT if name.startswith(("model/", "service/")) else ROOT / "service"
        place = inside / name
        known = place.exists() or place.with_suffix(".py").exists() or (ROOT / name).exists()
        # Names in the table's own cells are relative to the folder of their row.
        assert known or list((ROOT / "service").rglob(name.rstrip("/"))), name
