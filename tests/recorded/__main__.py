"""`python -m tests.recorded`: record anew, after a change that callers are meant to see."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.recorded.recording import FOLDER, differences, read, record, written


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.recorded",
        description="Records the texts that users see: answers, OpenAPI, help, metrics, logs. Use it after a change of "
        "them that is meant; it lists the entries that changed.",
    )
    parser.parse_args()
    changed = 0
    for name, entries in asyncio.run(record()).items():
        for where in differences(name, read(FOLDER / name), entries):
            sys.stdout.write(f"{where}\n")
            changed += 1
        (FOLDER / name).write_text(written(entries), encoding="utf-8")
    sys.stdout.write(f"{changed} entries changed; see `git diff {FOLDER.relative_to(FOLDER.parents[1])}`\n")


if __name__ == "__main__":
    main()
