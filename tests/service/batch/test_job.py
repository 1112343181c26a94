from __future__ import annotations

import json
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from model.errors import ConvMLPError
from model.net.weights import write_bundle
from model.predictor import reference_answer
from model.types import Task
from service.batch.compact import IdSet
from service.batch.folders import LocalFolder
from service.batch.job import Job, finish
from service.batch.manifest import JobEntry, read_manifest
from service.batch.plan import Plan, read_plan
from service.batch.pool import STALL_TIMEOUT_S, Event, LocalPool, Lost, Scored
from service.batch.pool import Task as UnitTask
from service.batch.samples import Sample, Unit
from service.batch.score import Scorer
from service.batch.scoring_process import events_of
from service.batch.sinks import Results, open_results
from service.batch.sources import Source, open_source
from service.batch.storage import Place, StorageFailed
from service.settings import Settings
from tests.model.tiny_models import metadata, tiny_network
from tests.service.batch.pictures import picture, write_pictures


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("store")
    write_bundle(folder, metadata("classifier", name="classify"), tiny_network("classifier"), reference_answer)
    settings = Settings(models_dir=folder, models=("classify",), device="cpu", precision=("exact",), compute_threads=2)
    return read_plan(b"top_k=2", [Task.CLASSIFY], settings)


class Ended(Exception):
    """A process ended, as far as InlinePool has one."""


class EndingPicture(bytes):
    """A picture whose decoding ends the process."""

    def __len__(self) -> int:
        raise Ended


@dataclass(frozen=True)
class EndingUnit:
    """Pictures, at some of which the process ends that scores them: at each of `always`, and once at each of `once`."""

    ids: tuple[str, ...]
    always: frozenset[str]
    once: set[str]

    @property
    def pictures(self) -> int:
        return len(self.ids)

    def samples(self, done: Set[str]) -> Iterator[Sample]:
        for number, one in enumerate(self.ids):
            if one in done:
                continue
            ends = one in self.always or one in self.once
            self.once.discard(one)
            yield Sample(one, EndingPicture(picture(number)) if ends else picture(number))


class FailingUnit(EndingUnit):
    """A store that answers once."""

    def samples(self, done: Set[str]) -> Iterator[Sample]:  # noqa: ARG002
        yield Sample("a", picture(1))
        raise StorageFailed("the object store cannot be read: timeout")


@dataclass(frozen=True)
class EndingSource(Source):
    """A source of such units."""

    of: tuple[Unit, ...] = ()

    def units(self, done: IdSet, threads: int) -> Iterator[Unit]:  # noqa: ARG002
        yield from self.of


class InlinePool:
    """One process that is this one: a unit is scored when its events are asked for."""

    devices = ("cpu",)
    threads = 1

    def __init__(self) -> None:
        self._tasks: deque[UnitTask] = deque()

    def start(self, plan: Plan, stopped: Callable[[], bool]) -> Mapping[str, str]:  # noqa: ARG002
        self._scorer = Scorer(plan)
        return self._scorer.precisions

    @property
    def free(self) -> int:
        return 2 - len(self._tasks)

    def submit(self, task: UnitTask) -> None:
        self._tasks.append(task)

    def events(self, timeout_s: float) -> Iterator[Event]:  # noqa: ARG002
        if self._tasks:
            try:
                yield from events_of(self._scorer, self._tasks[0])
                self._tasks.popleft()
            except Ended:
                lost = [task.number for task in self._tasks]
                self._tasks.clear()
                yield Lost(lost)

    def close(self) -> None:
        self._scorer.close()


class Silent:
    """Keeps the last progress."""

    last: tuple[int, int | None, int] = (0, None, 0)

    def update(self, done: int, total: int | None, errors: int) -> None:
        self.last = (done, total, errors)


def rows_of(folder: Path) -> dict[str, Any]:
    """The rows by their ids, each of which has one."""
    lines = [json.loads(line) for path in sorted(folder.glob("part-*")) for line in path.read_bytes().splitlines()]
    found = {line["id"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def run(plan: Plan, source: Source, folder: Path, pool: InlinePool | LocalPool) -> Results:
    """A whole job."""
    with open_results(folder, JobEntry.of("/data", "jsonl", plan)) as results, closing(pool):
        results.begin(pool.start(plan, lambda: False), pool.devices)
        progress = Silent()
        assert Job(source, results, pool, progress).run(lambda: False)
        assert progress.last == (len(results.done), len(results.done), results.errors.total())
        finish(plan, source, results)
        return results


def test_a_picture_that_ends_its_process_is_an_error(plan: Plan, tmp_path: Path) -> None:
    """What ends a process once is scored, what ends it always has an error; each other picture has its answer."""
    units = tuple(
        EndingUnit(tuple(f"{unit}/{number}" for number in range(6)), always, once)
        for unit, (always, once) in enumerate(
            [(frozenset({"0/2", "0/5"}), set()), (frozenset(), {"1/3"}), (frozenset(), set[str]())]
        )
    )
    pool = InlinePool()
    results = run(plan, EndingSource(Place(""), (), of=units), tmp_path, pool)
    rows = rows_of(tmp_path)
    assert sorted(rows) == sorted(one for unit in units for one in unit.ids)
    failed = {one: row["error"] for one, row in rows.items() if "error" in row}
    assert sorted(failed) == ["0/2", "0/5"]
    assert failed["0/2"]["detail"] == "the process that scored this picture ended, twice"
    assert (results.errors, results.repeats) == ({"internal": 2}, 0)


def test_a_device_that_is_broken_stops_the_job(plan: Plan, tmp_path: Path) -> None:
    """If nothing can be scored, no picture is at fault: there are no rows of errors, and the job can be continued."""
    ids = tuple(map(str, range(20)))
    source = EndingSource(Place(""), (), of=(EndingUnit(ids, frozenset(ids), set()),))
    with pytest.raises(ConvMLPError, match="end again and again, 7 times without a row between"):
        run(plan, source, tmp_path, InlinePool())
    assert rows_of(tmp_path) == {}
    mended = EndingSource(Place(""), (), of=(EndingUnit(ids, frozenset(), set()),))
    assert run(plan, mended, tmp_path, InlinePool()).errors == {}
    assert sorted(rows_of(tmp_path)) == sorted(ids)


def test_an_object_store_that_fails_stops_the_job(plan: Plan, tmp_path: Path) -> None:
    """It is an error of no picture; what was scored before is kept."""

    units = (EndingUnit(("x", "y"), frozenset(), set()), FailingUnit(("a",), frozenset(), set()))
    with pytest.raises(ConvMLPError, match="the object store cannot be read: timeout"):
        run(plan, EndingSource(Place(""), (), of=units), tmp_path, InlinePool())
    assert sorted(rows_of(tmp_path)) == ["x", "y"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_ends_or_hangs_costs_no_picture(plan: Plan, tmp_path: Path, number: signal.Signals) -> None:
    """Another one takes its place, and each picture has one row, without an error."""
    names = write_pictures(tmp_path / "in", 120)
    pool = Disturbed(1, stall_timeout_s=5.0 if number is signal.SIGSTOP else STALL_TIMEOUT_S)
    pool.number = number
    results = run(plan, open_source(str(tmp_path / "in")), tmp_path / "out", pool)
    assert pool.disturbed
    assert sorted(rows_of(tmp_path / "out")) == names
    assert (results.errors, results.repeats) == ({}, 0)


class Disturbed(LocalPool):
    """A process of this machine, which gets a signal once it has sent a row."""

    disturbed = False
    number = signal.SIGKILL

    def events(self, timeout_s: float) -> Iterator[Event]:
        for event in super().events(timeout_s):
            if isinstance(event, Scored) and not self.disturbed:
                self.disturbed = True
                children = psutil.Process().children()
                (child,) = [one for one in children if "service.batch.scoring_process" in one.cmdline()]
                child.send_signal(self.number)
            yield event


def test_a_job_that_is_stopped_keeps_its_rows(plan: Plan, tmp_path: Path) -> None:
    """The next run scores the rest alone, and a later one what is new; the manifest counts all."""
    names = write_pictures(tmp_path / "in", 90)
    source = open_source(str(tmp_path / "in"))
    stop = threading.Event()
    pool = InlinePool()
    with open_results(tmp_path / "out", JobEntry.of("/data", "jsonl", plan)) as results, closing(pool):
        results.begin(pool.start(plan, lambda: False), pool.devices)

        class Stopping(Silent):
            def update(self, done: int, total: int | None, errors: int) -> None:  # noqa: ARG002
                if done >= 20:
                    stop.set()

        assert not Job(source, results, pool, Stopping()).run(stop.is_set)
    before = rows_of(tmp_path / "out")
    assert 20 <= len(before) < 90
    results = run(plan, source, tmp_path / "out", InlinePool())
    assert before.items() < rows_of(tmp_path / "out").items()
    assert sorted(rows_of(tmp_path / "out")) == names
    # Of a source that has got more files only these are scored.
    more = write_pictures(tmp_path / "in", 95)
    run(plan, open_source(str(tmp_path / "in")), tmp_path / "out", InlinePool())
    assert sorted(rows_of(tmp_path / "out")) == more
    manifest = read_manifest(LocalFolder(tmp_path / "out"))
    assert manifest is not None
    assert (manifest.finished, manifest.pictures, manifest.repeats) == (True, 95, 0)
