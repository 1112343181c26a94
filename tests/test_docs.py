"""What the Markdown pages refer to."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from service.cli.environment import OTHERS
from service.errors import DOMAIN_ERRORS
from service.frontend.grpc.status import ERROR_TABLE as GRPC_TABLE
from service.frontend.http.problems import ERROR_TABLE as HTTP_TABLE
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".", "docs", "docs/decisions", "docs/runbooks", "client", "examples", "examples/*")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))
RELIABILITY, PICTURES = ROOT / "docs/reliability.md", ROOT / "docs/pictures.md"
FACTORS = {"KiB": 2**10, "MiB": 2**20}
NOT_SETTINGS = {"weights_only"}
"""Names with an underscore in SECURITY.md that are not settings."""


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


def rows_with_tests(page: Path) -> list[str]:
    """The rows of all tables whose last column has tests."""
    rows, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.endswith("| test |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|--"):
            rows.append(line)
    return rows


@pytest.mark.parametrize(("page", "count"), [(RELIABILITY, 60), (PICTURES, 20)], ids=lambda value: str(value))
def test_every_row_has_a_test_that_exists(page: Path, count: int) -> None:
    """Each fault, and each kind of picture, names a test, and the file that it links has a test of that name."""
    rows = rows_with_tests(page)
    assert len(rows) > count
    for row in rows:
        tests = re.findall(r"\[`(test_\w+)`\]\((\S+?)\)", row.rsplit(" | ", 1)[1])
        assert tests, row
        for name, path in tests:
            nodes = ast.walk(ast.parse((page.parent / path).read_text(encoding="utf-8")))
            assert any(
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name for node in nodes
            ), name


def test_errors_have_their_statuses() -> None:
    """The table of errors has each error that callers get, with its status of each transport, and no other."""
    text = RELIABILITY.read_text(encoding="utf-8").split("\n## ", 1)[0]
    rows = re.findall(r"^\| (\d+ · [A-Z_]+) \| (.*?) \|", text, re.MULTILINE)
    described = {(status, name) for status, names in rows for name in re.findall(r"`([a-z-]+)`", names)}
    public = [error for error in DOMAIN_ERRORS if HTTP_TABLE[error].public]
    assert described == {
        (f"{HTTP_TABLE[error].status} · {GRPC_TABLE[error].code.name}", error.code) for error in public
    }


@pytest.mark.parametrize("page", [RELIABILITY, ROOT / "SECURITY.md"], ids=lambda page: page.name)
def test_bounds_are_settings(page: Path) -> None:
    """Each name of a setting is one, and each metric is described in docs/monitoring.md."""
    monitoring = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", page.read_text(encoding="utf-8")))
    names -= {name for name in names if name.startswith("test_")} | NOT_SETTINGS
    assert len(names) > 10
    for name in names:
        described = name.startswith("convmlp_") and f"`{name.removeprefix('convmlp_')}" in monitoring
        assert name in Settings.model_fields or described, name


def test_bounds_that_are_constants_have_the_codes_values() -> None:
    """Each constant of the tables of faults is in the code, with the value that the page gives."""
    named = re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`(?: \(([\d.,]+)(?: (\w+))?)?", "\n".join(rows_with_tests(RELIABILITY)))
    assert len(named) > 20
    for name, value, unit in named:
        defined = re.compile(rf"^(?:{name}|[A-Z_, ]*\b{name}\b[A-Z_, ]*)(?:: \w+)? = ", re.MULTILINE)
        files = [file for folder in ("model", "service") for file in sorted((ROOT / folder).rglob("*.py"))]
        modules = [file for file in files if defined.search(file.read_text(encoding="utf-8"))]
        assert modules, name
        if value:
            values = [
                getattr(importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts)), name)
                for file in modules
            ]
            assert float(value.replace(",", "")) * FACTORS.get(unit, 1) in values, (name, values)


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "client"], ids=lambda page: page.name)
def test_variables_are_read(page: Path) -> None:
    """Each variable CONVMLP_… of a page is a setting, or one of the commands or of the compose files."""
    for name in set(re.findall(r"\bCONVMLP_[A-Z_]*[A-Z]\b", page.read_text(encoding="utf-8"))):
        assert name.removeprefix("CONVMLP_").lower() in Settings.model_fields or name in OTHERS, name
