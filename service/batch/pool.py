"""The processes that score: the Pool protocol, its events, and processes of this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from typing import NamedTuple, Protocol

from model.errors import ConvMLPError
from service.batch.plan import Plan
from service.batch.samples import Unit
from service.batch.score import Row
from service.errors import Internal, error_from_code
from service.settings import Settings, usable_cores
from service.supervision.placement import count_cuda_devices

THREADS_OF_PROCESS = 8
"""Threads of a process that share Python's interpreter lock without losing much time to it."""
START_TIMEOUT_S = 600.0
"""For a process to load its models; measuring a precision takes some seconds of it."""
POLL_S = 0.5
"""How soon a stop is noticed."""
STALL_TIMEOUT_S = 600.0
"""A process that has tasks and reports nothing for so long hangs, and is ended. A picture takes far less."""
STOP_TIMEOUT_S = 5.0


class Task(NamedTuple):
    """A unit to score, without the pictures that are `done`. `careful`: picture by picture, each announced before."""

    number: int
    unit: Unit
    done: frozenset[str] = frozenset()
    careful: bool = False


class Loaded(NamedTuple):
    """A process is ready, with these precisions by model, and takes so many tasks at once."""

    precisions: Mapping[str, str]
    device: str
    threads: int


class Scored(NamedTuple):
    """Rows of a task, as they are ready."""

    task: int
    rows: Sequence[Row]


class Starting(NamedTuple):
    """A careful task goes on with this picture."""

    task: int
    id: str


class Finished(NamedTuple):
    """A task has no more rows."""

    task: int


class Failed(NamedTuple):
    """An error that is of no picture: nothing goes on."""

    code: str
    detail: str

    @property
    def error(self) -> ConvMLPError:
        return error_from_code(self.code, self.detail)


class Lost(NamedTuple):
    """A process ended with these tasks unfinished. `reason`: why, where it did not print that itself."""

    tasks: Sequence[int]
    reason: str = "see its messages above"


Event = Loaded | Scored | Starting | Finished | Failed | Lost


class Stopped(Exception):
    """The job was stopped while processes were loading."""


class Pool(Protocol):
    """Processes that have loaded a plan's models."""

    @property
    def devices(self) -> Sequence[str]:
        """Of the processes."""
        ...

    def start(self, plan: Plan, stopped: Callable[[], bool]) -> Mapping[str, str]:
        """Start the processes; the precisions of the models, which are the same on all.

        Raises:
            ConvMLPError: the models cannot be loaded.
            Stopped: `stopped` became true.
        """
        ...

    @property
    def free(self) -> int:
        """How many more tasks are worth submitting."""
        ...

    @property
    def threads(self) -> int:
        """Of all processes: so many units are scored at once."""
        ...

    def submit(self, task: Task) -> None: ...

    def events(self, timeout_s: float) -> Iterator[Event]:
        """What happened, after waiting for it at most so long."""
        ...

    def close(self) -> None:
        """End the processes at once. What they have not reported is lost."""
        ...


@dataclass(slots=True, eq=False)
class _Process:
    """A process that scores, and its tasks in progress."""

    child: subprocess.Popen[bytes]
    connection: Connection
    settings: Settings
    loaded: Loaded | None = None
    tasks: set[int] = field(default_factory=set)
    reported_s: float = 0.0
    """When it last reported something, or got its first task."""

    @property
    def free(self) -> int:
        # One more than it has threads, so that none waits for the next.
        return 0 if self.loaded is None else self.loaded.threads + 1 - len(self.tasks)


class LocalPool:
    """Processes of this machine: for each GPU, or for each THREADS_OF_PROCESS cores."""

    def __init__(self, processes: int | None = None, stall_timeout_s: float = STALL_TIMEOUT_S) -> None:
        """`processes`: how many; None: by the device."""
        self._count = processes
        self._stall_timeout_s = stall_timeout_s
        self._plan: Plan | None = None
        self._processes: list[_Process] = []

    @property
    def devices(self) -> list[str]:
        return [one.settings.device for one in self._processes]

    @property
    def free(self) -> int:
        return sum(max(0, one.free) for one in self._processes)

    @property
    def threads(self) -> int:
        return sum(one.loaded.threads for one in self._processes if one.loaded is not None)

    def start(self, plan: Plan, stopped: Callable[[], bool]) -> Mapping[str, str]:
        placed = place(plan.settings, self._count)
        # The first one selects the precisions.
        self._plan = plan
        first = self._start(placed[0])
        loaded = self._await(first, stopped)
        self._plan = plan.with_precisions(loaded.precisions)
        first.settings = first.settings.with_changes(device=loaded.device)
        for settings in placed[1:]:
            self._start(settings)
        return loaded.precisions

    def submit(self, task: Task) -> None:
        process = max(self._processes, key=lambda one: one.free)
        if not process.tasks:
            process.reported_s = time.monotonic()
        process.tasks.add(task.number)
        # A process that has ended is reported by its events.
        with contextlib.suppress(OSError):
            process.connection.send(task)

    def events(self, timeout_s: float) -> Iterator[Event]:
        by_connection = {one.connection: one for one in self._processes}
        now_s = time.monotonic()
        for process in self._processes:
            if process.tasks and now_s - process.reported_s > self._stall_timeout_s:
                process.child.kill()  # its end is found below
        for ready in wait(list(by_connection), timeout_s):
            process = by_connection[ready]  # type: ignore[index]
            try:
                event: Event = process.connection.recv()
            except (EOFError, OSError):
                yield self._replaced(process)
                continue
            process.reported_s = time.monotonic()
            if isinstance(event, Loaded):
                process.loaded = event
            elif isinstance(event, Finished):
                process.tasks.discard(event.task)
            yield event

    def close(self) -> None:
        for one in self._processes:
            one.connection.close()
            one.child.kill()
        for one in self._processes:
            one.child.wait(STOP_TIMEOUT_S)
        self._processes.clear()

    def _start(self, settings: Settings) -> _Process:
        assert self._plan is not None
        ours, theirs = Pipe()
        # A session of its own: Ctrl-C in a terminal is for the command, which ends this process.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.batch.scoring_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        process = _Process(child, ours, settings)
        self._processes.append(process)
        with contextlib.suppress(OSError):
            ours.send(replace(self._plan, settings=settings))
        return process

    def _await(self, process: _Process, stopped: Callable[[], bool]) -> Loaded:
        """Raises what hinders a process from loading its models; Stopped."""
        event: object = None
        end_s = time.monotonic() + START_TIMEOUT_S
        while not (ready := process.connection.poll(POLL_S)) and time.monotonic() < end_s:
            if stopped():
                raise Stopped
        if ready:
            with contextlib.suppress(EOFError, OSError):
                event = process.connection.recv()
        match event:
            case Loaded():
                process.loaded = event
                return event
            case Failed():
                raise event.error
        raise Internal("the process that loads the models ended, or does not answer; see its messages above")

    def _replaced(self, process: _Process) -> Lost:
        """Start another process in the place of one that has ended."""
        process.connection.close()
        process.child.kill()
        process.child.wait()
        self._processes.remove(process)
        self._start(process.settings)
        return Lost(sorted(process.tasks))


def place(settings: Settings, count: int | None) -> list[Settings]:
    """The settings of each process: its device, and its share of the cores."""
    gpus = count_cuda_devices() if settings.device in ("auto", "cuda") else 0
    cores = settings.compute_threads or usable_cores()
    if count is None:
        count = gpus or max(1, round(cores / THREADS_OF_PROCESS))
    return [
        settings.with_changes(
            device=f"cuda:{number % gpus}" if gpus else settings.device,
            compute_threads=max(1, cores // count),
        )
        for number in range(count)
    ]
