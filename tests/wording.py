"""Find words that the project does not use for what a program does: `python -m tests.wording`, part of `make lint`.

Prints `file:line: "word": what to write instead` for each one, and exits 1 if there is one. `--all` also counts the
words in the folders that are not checked yet, and exits as without it.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

CHECKED = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", ".env.example", "Makefile"),
    *("docker-compose.yml", "docker-compose.cpu.yml", "docker-compose.gpus.yml", "docker-compose.scale.yml"),
    "benchmarks",
    "deploy",
    "docker",
    "docs",
    "examples",
    "proto",
    "service/cli",
    *("service/errors.py", "service/process.py", "service/settings.py", "service/types.py"),
    "service/frontend/api/oip",
    "service/frontend/api/vision",
    "service/frontend/grpc",
    "service/frontend/grpc_main.py",
    "service/supervision",
    "tests/e2e",
    "tests/service/cli",
)
"""Files and folders, from the root, in which the words are errors."""

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
SKIPPED_NAMES = frozenset({"__pycache__", "build", "generated", "node_modules"})
SUFFIXES = frozenset(
    {".c", ".cfg", ".css", ".html", ".js", ".json", ".md", ".proto", ".py", ".sh", ".svg", ".toml", ".txt", ".yaml"}
    | {".yml"}
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

ALLOWED: dict[str, tuple[str, ...]] = {"tests/service/cli/test_remote.py": ("runner.gate",)}
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


def files(root: Path, folder: str) -> Iterator[str]:
    """The paths, from the root, of the text files in one folder, or of the one file that it is."""
    place = root / folder
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        inside = path.relative_to(root)
        name = inside.as_posix()
        skipped = not SKIPPED_NAMES.isdisjoint(inside.parts) or name.startswith(SKIPPED)
        if (path.suffix in SUFFIXES or path.name in NAMES) and not skipped and path.is_file():
            yield name


def _in(root: Path, folder: str) -> list[Finding]:
    return [one for name in files(root, folder) for one in findings(name, (root / name).read_text(encoding="utf-8"))]


def main(arguments: list[str]) -> int:
    found = [one for folder in CHECKED for one in _in(ROOT, folder)]
    sys.stdout.writelines(f"{one}\n" for one in found)
    if "--all" in arguments:
        tops = (path.name for path in sorted(ROOT.iterdir()) if path.name in NAMES or not path.name.startswith("."))
        everywhere = [one for top in tops for one in _in(ROOT, top)]
        left = Counter(str(Path(one.path).parent) for one in everywhere)
        sys.stdout.writelines(f"{number:5} {folder}\n" for folder, number in left.most_common())
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
