"""Find words that the project does not use for what a program does: `python -m tests.wording`, part of `make lint`.

Prints `file:line: "word": what to write instead` for each one, and exits 1 if there is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

HIDDEN = frozenset({".ci", ".env.example", ".github", ".pre-commit-config.yaml"})
"""Names in the root that are checked although they begin with a dot."""

SKIPPED = (
    "client/convmlp/",  # made of proto/
    "convmlp_serving.egg-info",
    "docker/locks",
    "docs/performance.json",
    "model/bundles",
    "model/zoo/labels",
    "proto/google",
    "proto/open_inference",  # the standard's own text
    "tests/test_wording.py",
    "tests/wording.py",
)
SKIPPED_NAMES = frozenset({"__pycache__", "build", "generated", "node_modules", "vendor"})
SUFFIXES = frozenset(
    {".c", ".cfg", ".css", ".h", ".html", ".js", ".json", ".md", ".proto", ".py", ".sh", ".svg", ".toml", ".txt"}
    | {".yaml", ".yml"}
)
NAMES = frozenset({"Dockerfile", "Makefile", ".env.example"})

INSTEAD = {
    r"tells?|told|telling": "report, return, send, name",
    r"says?|said|saying": "state, report, set, return",
    r"hears?|heard": "receive, notice, reach",
    r"who(?:m|so)?ever": "the caller, the user, any process",
    r"in hand": "in flight, being processed",
    r"gone": "lost, closed, cancelled, removed",
    r"lets? in|letting in": "admit",
    r"to be had|is had": "available",
    r"comes? of|came of": "result",
    r"kn[eo]ws? of|known of": "have, list",
    r"shelf|shelves|shelved": "registry",
    r"keepers?": "loader",
    r"audience": "subscribers",
    r"doors?": "endpoint",
    r"crews?": "thread pool",
    r"gates?": "authentication, limit",
    r"(?:an?|the|each|every|per|one|whose) turns?(?! of)": "request, call",
    r"briefs?": "parameters, summary",
}
"""Each a regular expression without its boundaries, and what to write instead. A space is any gap between words."""

ALLOWED: dict[str, tuple[str, ...]] = {
    # The licence in the configs of the embedded bundles, and where it is recorded.
    "model/training/train.py": ("under CC BY-SA 4.0 and says", "the README in the annotation archive says"),
    "tests/recorded/commands.txt": ("under CC BY-SA 4.0 and says",),
}
"""By file, pieces of lines in which a word is right: quotations, and names that are not the project's."""

_GAP = r"(?:_|[\s#/*\"']+)"
# Underscores do not belong to a word: names in code are read too. A phrase may go on in the next line.
_WORDS = re.compile(
    r"(?<![A-Za-z])(?:" + "|".join(f"({word})" for word in INSTEAD).replace(" ", _GAP) + r")(?![A-Za-z])",
    re.IGNORECASE,
)


class Finding(NamedTuple):
    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f'{self.path}:{self.line}: "{self.word}": {self.instead}'


def findings(path: str, text: str) -> Iterator[Finding]:
    """The words of one file that the project does not use.

    Args:
        path: the file's, from the root.
        text: what it holds.
    """
    lines = text.split("\n")
    for match in _WORDS.finditer(text):
        line = text.count("\n", 0, match.start())
        if not any(piece in lines[line] for piece in ALLOWED.get(path, ())):
            instead = tuple(INSTEAD.values())[(match.lastindex or 1) - 1]
            yield Finding(path, line + 1, re.sub(_GAP, " ", match[0]), instead)


def files(root: Path) -> Iterator[str]:
    """The paths, from the root, of the text files that are checked."""
    for top in sorted(root.iterdir()):
        if top.name in HIDDEN or not top.name.startswith("."):
            for path in [top] if top.is_file() else sorted(top.rglob("*")):
                inside = path.relative_to(root)
                name = inside.as_posix()
                skipped = not SKIPPED_NAMES.isdisjoint(inside.parts) or name.startswith(SKIPPED)
                if (path.suffix in SUFFIXES or path.name in NAMES) and not skipped and path.is_file():
                    yield name


def main() -> int:
    found = [one for name in files(ROOT) for one in findings(name, (ROOT / name).read_text(encoding="utf-8"))]
    sys.stdout.writelines(f"{one}\n" for one in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
