"""The command line, many times over: one process imports it all, and runs each command as a fork of itself.

`python -m tests.recorded.commands MODULE` reads command lines of a module from stdin, a JSON list of words a line, and
answers each with a JSON object: exit status, stdout and stderr.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

WARM_UP = (("--help",), ("serve", "--help"))
"""Commands that import what most need."""


class CommandLine:
    """Use as a context manager; runs one command at a time."""

    def __init__(self, module: str, environment: Mapping[str, str], folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, module],
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
        return "\n".join(lines).rstrip("\n")  # typer ends an epilogue with a line of blanks


def main(module: str) -> None:
    for words in WARM_UP:
        with contextlib.redirect_stdout(io.StringIO()):
            _run(module, words)
    gc.freeze()  # what the forks share they need not look at
    for line in sys.stdin:
        sys.stdout.write(f"{json.dumps(_forked(module, json.loads(line)))}\n")
        sys.stdout.flush()


def _forked(module: str, words: Sequence[str]) -> dict[str, int | str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            status = _run(module, words)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # to take the interpreter apart would take longer than most commands
        _, status = os.waitpid(pid, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        return {"status": os.waitstatus_to_exitcode(status), "stdout": texts[0], "stderr": texts[1]}


def _run(module: str, words: Sequence[str]) -> int:
    """The exit status."""
    sys.argv[1:] = words
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main(sys.argv[1])
