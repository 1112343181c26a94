"""Processes that score on a Ray cluster: an actor for each GPU, or for each THREADS_OF_PROCESS cores of a node.

Ray places the actors, and starts others where they or their node end. Units and rows travel as Ray's objects; pictures
do not: an actor reads them where they lie. The models travel with the job.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.errors import ConvMLPError
from service.batch.plan import Plan
from service.batch.pool import (
    POLL_S,
    STALL_TIMEOUT_S,
    START_TIMEOUT_S,
    THREADS_OF_PROCESS,
    Event,
    Failed,
    Finished,
    Loaded,
    Lost,
    Stopped,
    Task,
)
from service.batch.scoring_process import events_of
from service.batch.storage import PackageMissing
from service.errors import BadParameter, Internal

LOCAL = "local"
"""The address for which Ray is started, on this machine."""

BundleFiles = Mapping[str, Mapping[str, bytes]]
"""The files of each model's bundle, by the models' names."""


class ScoringActor:
    """The models of a plan in a process of the cluster."""

    def load(self, plan: Plan, bundles: BundleFiles) -> Loaded | Failed:
        """Write the bundles to this node, and load them."""
        from service.batch.score import Scorer

        try:
            with tempfile.TemporaryDirectory(prefix="convmlp-batch-") as folder:
                self._scorer = Scorer(_unpacked(plan, bundles, Path(folder)))
        except ConvMLPError as error:
            return Failed(error.code, error.detail)
        except ModuleNotFoundError as error:
            return Failed(PackageMissing.code, f"{error.name} is not installed on the nodes of the cluster")
        return Loaded(self._scorer.precisions, self._scorer.device, self._scorer.threads)

    def score(self, task: Task) -> Iterator[Event]:
        """The events of a task."""
        yield from events_of(self._scorer, task)


def _unpacked(plan: Plan, bundles: BundleFiles, folder: Path) -> Plan:
    models = []
    for one in plan.models:
        target = folder / one.name
        target.mkdir(parents=True, exist_ok=True)
        for name, data in bundles[one.name].items():
            (target / name).write_bytes(data)
        models.append(replace(one, folder=target))
    return replace(plan, models=tuple(models))


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an actor runs: its node, and what it takes of it."""

    node: str
    cores: int
    gpus: int


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    slot: Slot
    loading: Any
    loaded: Loaded | None = None
    tasks: set[int] = field(default_factory=set)
    reported_s: float = 0.0

    @property
    def free(self) -> int:
        return 0 if self.loaded is None else self.loaded.threads + 1 - len(self.tasks)


class RayPool:
    """Actors of the cluster at `address`: host and port of its head, `auto` on one of its nodes, or LOCAL."""

    def __init__(self, address: str, actors: int | None = None) -> None:
        """`actors`: how many; None: as many as the cluster has room for.

        Raises:
            PackageMissing: Ray is not installed.
            BadParameter: the address is Ray Client's, which cannot stream rows.
        """
        # What Ray starts with its defaults, and a command must not: reports to its makers, a file with a token.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address == LOCAL:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        if "://" in address:
            raise BadParameter("--address is HOST:PORT of the cluster's head, auto, or local; ray:// does not work")
        try:
            import ray
        except ModuleNotFoundError as error:
            raise PackageMissing(
                f"--address needs {error.name}, which is not installed; install this package's extra `cluster`"
            ) from error
        self._ray = ray
        self._address = address
        self._limit = actors
        self._plan: Plan | None = None
        self._bundles: Any = None
        self._actors: list[_Actor] = []
        self._streams: dict[Any, tuple[_Actor, int]] = {}

    @property
    def devices(self) -> list[str]:
        return ["cuda" if one.slot.gpus else "cpu" for one in self._actors]

    @property
    def free(self) -> int:
        return sum(max(0, one.free) for one in self._actors)

    @property
    def threads(self) -> int:
        return sum(one.slot.cores for one in self._actors)

    def start(self, plan: Plan, stopped: Callable[[], bool]) -> Mapping[str, str]:
        """As `Pool.start`. Raises also Internal: the cluster cannot be reached, or has no room."""
        options = {"include_dashboard": False} if self._address == LOCAL else {}
        try:
            self._ray.init(self._address, log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            raise Internal(f"the cluster at {self._address} cannot be reached: {error}") from error
        slots = self._slots(plan)[: self._limit]
        if not slots:
            raise Internal("the cluster has no node with a free GPU or core; see `ray status`")
        files = {one.name: {path.name: path.read_bytes() for path in one.folder.iterdir()} for one in plan.models}
        self._bundles = self._ray.put(files)
        self._plan = plan
        first = self._start(slots[0])
        loaded = self._await(first, stopped)
        self._plan = plan.with_precisions(loaded.precisions)
        for slot in slots[1:]:
            self._start(slot)
        return loaded.precisions

    def submit(self, task: Task) -> None:
        actor = max(self._actors, key=lambda one: one.free)
        if not actor.tasks:
            actor.reported_s = time.monotonic()
        actor.tasks.add(task.number)
        stream = actor.handle.score.options(num_returns="streaming").remote(task)
        self._streams[stream] = (actor, task.number)

    def events(self, timeout_s: float) -> Iterator[Event]:
        loading = {one.loading: one for one in self._actors if one.loading is not None}
        waited: list[Any] = [*loading, *self._streams]
        if not waited:
            time.sleep(timeout_s)
            return
        now_s = time.monotonic()
        for actor in self._actors:
            if actor.tasks and now_s - actor.reported_s > STALL_TIMEOUT_S:
                self._ray.kill(actor.handle)  # its end is found below
        ready, _ = self._ray.wait(waited, num_returns=1, timeout=timeout_s)
        for one in ready:
            actor = loading[one] if one in loading else self._streams[one][0]
            try:
                event: Event = self._ray.get(one if one in loading else next(one))
            except StopIteration:
                del self._streams[one]
                continue
            except self._ray.exceptions.RayError as error:
                yield self._replaced(actor, error)
                continue
            actor.reported_s = time.monotonic()
            if isinstance(event, Loaded):
                actor.loaded, actor.loading = event, None
            elif isinstance(event, Finished):
                actor.tasks.discard(event.task)
            yield event

    def close(self) -> None:
        if self._ray.is_initialized():
            for one in self._actors:
                with suppress(self._ray.exceptions.RayError):
                    self._ray.kill(one.handle)
            self._ray.shutdown()
        self._actors.clear()
        self._streams.clear()

    def _slots(self, plan: Plan) -> list[Slot]:
        """Where actors run: for each GPU, or else for THREADS_OF_PROCESS cores of a node."""
        slots = []
        for node in self._ray.nodes():
            resources = node["Resources"]
            cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
            if not node["Alive"] or not (cores or gpus):
                continue
            on_gpu = gpus > 0 and plan.settings.device != "cpu"
            count = gpus if on_gpu else max(1, round(cores / THREADS_OF_PROCESS))
            slots += [Slot(node["NodeID"], max(1, cores // count), int(on_gpu))] * count
        # The nodes by turns, so that fewer actors are on all of them.
        number_on_node: dict[str, int] = {}
        ordered: list[tuple[int, int, Slot]] = []
        for slot in slots:
            number_on_node[slot.node] = number_on_node.get(slot.node, 0) + 1
            ordered.append((number_on_node[slot.node], len(ordered), slot))
        return [slot for *_, slot in sorted(ordered, key=lambda one: one[:2])]

    def _start(self, slot: Slot) -> _Actor:
        assert self._plan is not None
        scheduling = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(slot.node, soft=True)
        options = {
            "num_cpus": slot.cores,
            "num_gpus": slot.gpus,
            "max_concurrency": slot.cores + 1,
            "scheduling_strategy": scheduling,
        }
        handle = self._ray.remote(ScoringActor).options(**options).remote()
        device = "cuda" if slot.gpus else "cpu"
        settings = self._plan.settings.with_changes(compute_threads=slot.cores, device=device)
        loading = handle.load.remote(replace(self._plan, settings=settings), self._bundles)
        actor = _Actor(handle, slot, loading)
        self._actors.append(actor)
        return actor

    def _await(self, actor: _Actor, stopped: Callable[[], bool]) -> Loaded:
        end_s = time.monotonic() + START_TIMEOUT_S
        while not self._ray.wait([actor.loading], timeout=POLL_S)[0]:
            if stopped():
                raise Stopped
            if time.monotonic() > end_s:
                raise Internal(f"no node loaded the models within {START_TIMEOUT_S:.0f} s; see `ray status`")
        try:
            event: Loaded | Failed = self._ray.get(actor.loading)
        except self._ray.exceptions.RayError as error:
            raise Internal(f"the process that loads the models failed: {_text(error)}") from error
        if isinstance(event, Failed):
            raise event.error
        actor.loaded, actor.loading = event, None
        return event

    def _replaced(self, actor: _Actor, error: Exception) -> Lost:
        """Start another actor in the place of one that has ended, or failed."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(actor.handle)
        self._actors.remove(actor)
        for stream in [stream for stream, (of, _) in self._streams.items() if of is actor]:
            del self._streams[stream]
        self._start(actor.slot)
        return Lost(sorted(actor.tasks), _text(error))


def _text(error: Exception) -> str:
    """An error in one line: what was raised in the actor, or how it ended."""
    error = getattr(error, "cause", None) or error
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
