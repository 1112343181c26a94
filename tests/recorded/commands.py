"""The command line, many times over: one process imports it all, and runs each command as a fork of itself.

`python -m tests.recorded.commands` reads command lines from stdin, a JSON list of words a line, and answers each with
a JSON object: exit status, stdout and stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.recorded.starter import COMMAND_LINE

WARM_UP = (("--help",), ("serve", "--help"))
"""Commands that import what most need."""


class CommandLine:
    """Use as a context manager; runs one command at a time."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> CommandLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, words: Sequence[str]) -> str:
        """Exit status, stdout and stderr."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(list(words))}\n")
        self._process.stdin.flush()
        done = json.loads(self._process.stdout.readline())
        lines = [f"exit status {done['status']}"]
        for stream in ("stdout", "stderr"):
            if done[stream]:
                lines.append(f"--- {stream}")
                lines += [line.rstrip() for line in done[stream].strip("\n").splitlines()]
        return "\n".join(lines)


def main() -> None:
    for words in WARM_UP:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            _run(words)
    for line in sys.stdin:
        sys.stdout.write(f"{json.dumps(_forked(json.loads(line)))}\n")
        sys.stdout.flush()


def _forked(words: Sequence[str]) -> dict[str, int | str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            _run(words)
            sys.exit()
        _, status = os.waitpid(pid, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        return {"status": os.waitstatus_to_exitcode(status), "stdout": texts[0], "stderr": texts[1]}


def _run(words: Sequence[str]) -> None:
    sys.argv[1:] = words
    runpy.run_module(COMMAND_LINE, run_name="__main__")


if __name__ == "__main__":
    main()
