"""`python -m tests.recorded`: record anew, after a change that callers are meant to see."""

from __future__ import annotations

import asyncio
import sys

from tests.recorded.recording import FOLDER, differences, read, record, written


def main() -> None:
    changed = 0
    for name, entries in asyncio.run(record()).items():
        for where in differences(name, read(FOLDER / name), entries):
            sys.stdout.write(f"{where}\n")
            changed += 1
        (FOLDER / name).write_text(written(entries), encoding="utf-8")
    sys.stdout.write(f"{changed} entries changed; see `git diff {FOLDER.relative_to(FOLDER.parents[1])}`\n")


if __name__ == "__main__":
    main()
