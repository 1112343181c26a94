"""A job: hands the units of a source to a pool, and its rows to the results, until all are scored or it is stopped.

A process that ends takes its units with it. What they have not reported is scored again, picture by picture, so that
the picture at which it ends is known. If it ends there twice, that picture's row is an error.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from service.batch.coco import COCO_FILE, write_coco
from service.batch.compact import IdSet, packed, unpacked
from service.batch.plan import Plan
from service.batch.pool import POLL_S, Event, Failed, Finished, Loaded, Lost, Pool, Scored, Starting, Task
from service.batch.samples import Unit
from service.batch.score import Row, crash_row
from service.batch.sinks import OutputFormat, Results
from service.batch.sources import Source
from service.errors import Internal

LISTING_POLL_S = 0.02
"""How soon the first unit of the source is noticed."""
SAVE_INTERVAL_S = 10.0
"""Between two manifests of a job that runs: a kill loses no more of its seconds."""
MAX_LOSSES = 6
"""Processes that end without a row in between: then the fault is not of a picture."""


class Progress(Protocol):
    def update(self, done: int, total: int | None, errors: int) -> None:
        """Rows so far, those of earlier runs included; `total` is None while the source is being read."""
        ...


@dataclass(slots=True)
class _Work:
    """A unit in progress, with what it has reported. `current`: of a careful one, the picture that it is at; `suspect`:
    the one at which a process ended."""

    unit: Unit
    careful: bool = False
    reported: set[str] = field(default_factory=set)
    current: str | None = None
    suspect: str | None = None


class Job:
    """One run of a job. `run` it once."""

    def __init__(self, source: Source, results: Results, pool: Pool, progress: Progress) -> None:
        self._source = source
        self._results = results
        self._pool = pool
        self._progress = progress
        self._listing = Listing(source, results.done.copy())
        self._again: deque[_Work] = deque()
        """Units of processes that ended."""
        self._working: dict[int, _Work] = {}
        self._number = 0
        self._losses = 0
        self._suspects: list[Row] = []
        """Rows of pictures at which processes ended; written once a process has scored something after them."""

    def run(self, stopped: Callable[[], bool]) -> bool:
        """Score until all pictures have a row, or `stopped`. Whether all have.

        Raises:
            ConvMLPError: of a model, an object store, the folder of results, or of processes that keep ending. What was
                scored before is in the results.
        """
        saved_s = time.monotonic()
        self._listing.start(self._pool.threads)
        try:
            while self._submit() or self._working:
                if stopped():
                    return False
                for event in self._pool.events(POLL_S if self._working or self._again else LISTING_POLL_S):
                    self._handle(event)
                self._progress.update(len(self._results.done), self._total, self._results.errors.total())
                if time.monotonic() - saved_s > SAVE_INTERVAL_S:
                    saved_s = time.monotonic()
                    self._results.save_manifest()
            self._results.append(self._suspects)
            return True
        finally:
            self._listing.stop()
            self._results.save_manifest()

    @property
    def _total(self) -> int | None:
        """Of all pictures; None while it is not known."""
        pending = self._listing.pictures
        if pending is None:
            return None
        working = 0
        for work in (*self._working.values(), *self._again):
            if work.unit.pictures is None:
                return None
            working += max(0, work.unit.pictures - len(work.reported))
        return len(self._results.done) + pending + working

    def _submit(self) -> bool:
        """Give the pool what it has room for. Whether there is, or may be, more."""
        if self._again:
            # One by one, so that a process that ends was at this unit.
            if not self._working and self._pool.free > 0:
                self._start(self._again.popleft())
            return True
        while not any(work.careful for work in self._working.values()) and self._pool.free > 0:
            unit = self._listing.take()
            if unit is None:
                return not self._listing.is_complete
            self._start(_Work(unit))
        return True

    def _start(self, work: _Work) -> None:
        self._number += 1
        self._working[self._number] = work
        self._pool.submit(Task(self._number, work.unit, frozenset(work.reported), work.careful))

    def _handle(self, event: Event) -> None:
        match event:
            case Scored(number, rows):
                self._losses = 0
                if self._suspects:
                    self._results.append(self._suspects)
                    self._suspects.clear()
                self._working[number].reported.update(row.id for row in rows)
                self._results.append(rows)
            case Starting(number, sample_id):
                self._working[number].current = sample_id
            case Finished(number):
                del self._working[number]
            case Failed():
                raise event.error
            case Lost(numbers, reason):
                self._lost([self._working.pop(number) for number in numbers], reason)
            case Loaded():
                pass

    def _lost(self, lost: list[_Work], reason: str) -> None:
        self._losses += 1
        if self._losses > MAX_LOSSES:
            raise Internal(
                f"the processes that score end again and again, {self._losses} times without a row between: {reason}; "
                "the same command goes on from here"
            )
        for work in lost:
            if work.current is not None and work.current not in work.reported:
                if work.current == work.suspect:
                    work.reported.add(work.current)
                    self._suspects.append(crash_row(work.current))
                work.suspect = work.current
            work.careful = True
            work.current = None
            self._again.append(work)


class Listing:
    """The units of a source, listed in a thread while others are scored."""

    def __init__(self, source: Source, done: IdSet) -> None:
        self._source = source
        self._done = done
        self._units: deque[bytes] = deque()
        self._complete = threading.Event()
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self._pictures = 0
        self._unknown = 0
        self._counting = threading.Lock()

    def start(self, threads: int) -> None:
        threading.Thread(target=self._list, args=(threads,), name="listing", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def take(self) -> Unit | None:
        """The next unit; None if none is known, yet or at all. Raises what `Source.units` raises."""
        if self._error is not None:
            raise self._error
        if not self._units:
            return None
        unit: Unit = unpacked(self._units.popleft())
        self._count(unit, -1)
        return unit

    @property
    def is_complete(self) -> bool:
        """Whether no unit will be added. Ask again for a unit after it."""
        return self._complete.is_set() and not self._units and self._error is None

    @property
    def pictures(self) -> int | None:
        """In the units that were not taken; None while it is not known."""
        return self._pictures if self._complete.is_set() and not self._unknown else None

    def _list(self, threads: int) -> None:
        try:
            for unit in self._source.units(self._done, threads):
                if self._stopped.is_set():
                    return
                self._count(unit, 1)
                self._units.append(packed(unit))
        except Exception as error:  # of any kind: the job would wait for ever
            self._error = error
        self._complete.set()

    def _count(self, unit: Unit, sign: int) -> None:
        with self._counting:
            if unit.pictures is None:
                self._unknown += sign
            else:
                self._pictures += sign * unit.pictures


def finish(plan: Plan, source: Source, results: Results) -> None:
    """Close the results of a job whose pictures all have rows: its last part, COCO's document, and the manifest.

    Raises:
        ResultsInvalid: they cannot be written.
        StorageFailed: the object store does not take them.
    """
    with results.write_errors():
        results.close_parts()
        if results.format is OutputFormat.COCO:
            made = results.folder.work / f".{COCO_FILE}.new"
            write_coco(results.lines, made, results.manifest.job, plan.models[0].labels)
            results.folder.publish(made, COCO_FILE)
    results.save_manifest(listing_sha256=source.sha256)
