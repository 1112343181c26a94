"""Records the calls of a process's own functions, in all its threads, and counts them.

A call is each entry into a frame: also the resumption of a coroutine or a generator, and on Python 3.11 the frame of a
comprehension. A function without a file, as a dataclass's `__init__`, does not count.
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

QUIET_S = 0.05
"""A recording ends when no call was made for this long."""
LONGEST_S = 2.0
"""A recording ends at the latest this long after `stop`."""

_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_RESUMED = 0b11
"""The bits of RESUME's argument that are 0 where a function begins."""


class Call(NamedTuple):
    """One call. `file` is relative to the root of the folders; `depth` counts the own callers below it."""

    process: str
    thread: str
    file: str
    line: int
    name: str
    depth: int
    resumed: bool


class Recorder:
    """Records the calls of functions whose code lies in `folders`.

    `install` it in the main thread before other threads are started: a thread that exists cannot be reached.
    """

    def __init__(self, process: str, root: Path, folders: Sequence[str]) -> None:
        self._process = process
        self._root = f"{root}/"
        self._folders = tuple(f"{root / folder}/" for folder in folders)
        self._events: list[tuple[str, CodeType, int, int]] = []
        self._recording = False
        self._last_s = 0.0

    def install(self) -> None:
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def start(self) -> None:
        self._events = []
        self._recording = True

    def stop(self) -> list[Call]:
        """Wait until the process is quiet. The calls since `start`, in their order."""
        latest_s = time.monotonic() + LONGEST_S
        while (now_s := time.monotonic()) < latest_s and now_s - self._last_s < QUIET_S:
            time.sleep(QUIET_S / 5)
        self._recording = False
        return [
            Call(
                self._process,
                thread,
                code.co_filename.removeprefix(self._root),
                code.co_firstlineno,
                code.co_qualname,
                depth,
                _is_resumed(code, instruction),
            )
            for thread, code, instruction, depth in self._events
        ]

    def _profile(self, frame: FrameType, event: str, _argument: object) -> None:
        if not self._recording or event != "call" or not self._is_own(frame.f_code):
            return
        depth = 0
        caller = frame.f_back
        while caller is not None:
            depth += self._is_own(caller.f_code)
            caller = caller.f_back
        self._last_s = time.monotonic()
        self._events.append((threading.current_thread().name, frame.f_code, frame.f_lasti, depth))

    def _is_own(self, code: CodeType) -> bool:
        return code.co_filename.startswith(self._folders)


def _is_resumed(code: CodeType, instruction: int) -> bool:
    return bool(code.co_flags & _SUSPENDABLE) and bool(code.co_code[instruction + 1] & _RESUMED)


class Counts(NamedTuple):
    """`changes`: how often a call is of another file than the call before it in its thread."""

    calls: int
    files: int
    changes: int


def count(calls: Iterable[Call]) -> Counts:
    threads = by_thread(calls)
    every = [call for made in threads.values() for call in made]
    changes = sum(one.file != next_one.file for made in threads.values() for one, next_one in pairwise(made))
    return Counts(len(every), len({call.file for call in every}), changes)


def by_thread(calls: Iterable[Call]) -> Mapping[tuple[str, str], Sequence[Call]]:
    """The calls by process and thread, in the order of each thread's first."""
    threads: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        threads.setdefault((call.process, call.thread), []).append(call)
    return threads


def listing(calls: Iterable[Call]) -> Iterator[str]:
    """A line for each call, indented by its depth, and a heading for each thread."""
    for (process, thread), made in by_thread(calls).items():
        yield f"{process}, thread {thread}: {len(made)} calls"
        shallowest = min(call.depth for call in made)
        for call in made:
            resumed = " (resumed)" if call.resumed else ""
            yield f"{'  ' * (call.depth - shallowest + 1)}{call.name}  {call.file}:{call.line}{resumed}"
