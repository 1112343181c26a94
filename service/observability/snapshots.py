"""The metrics of the processes of one service, shared as snapshots: a file for each role in a common folder.

A process counts in its own memory and publishes what it counted about twice a second. What cannot be written or read
is dropped and counted, and no request notices: a metric is never worth an answer. A restarted process continues from
the last snapshot of its role, so counters never decrease.
"""

from __future__ import annotations

import contextlib
import operator
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Exemplar as CountedExemplar

from service.observability.metrics import GAUGE_MERGE

FORMAT = 2
PUBLISH_INTERVAL_S = 0.5
LAST_PUBLISH_S = 2.0
"""How long the end of a process may wait for its last snapshot."""
MAX_SNAPSHOT_BYTES = 16 << 20
WARNING_INTERVAL_S = 60.0
SUFFIX = ".metrics"

log = structlog.get_logger(__name__)


Exemplar = tuple[dict[str, str], float, float]
"""Labels, value, and time in Unix seconds."""
Sample = tuple[str, dict[str, str], float, Exemplar | None]
"""Name, labels and value."""


class Family(msgspec.Struct, array_like=True, frozen=True):
    """A metric: its kind as in Prometheus' text format, and its samples."""

    name: str
    kind: str
    documentation: str
    samples: list[Sample]


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """The metrics of a role: of the process `pid`, and the counters and histograms of its predecessors."""

    format: int
    pid: int
    start: int | None
    """When the process started, on the kernel's clock: another process may have its number later."""
    families: list[Family]

    def is_live(self) -> bool:
        """Whether the process still runs."""
        return start_of(self.pid) == self.start

    def lasting(self) -> list[Family]:
        """The families that keep their meaning after the process has ended."""
        return [family for family in self.families if family.kind != "gauge"]


def families_of(registry: CollectorRegistry) -> list[Family]:
    """The metrics of this process."""
    return [
        Family(
            one.name,
            one.type,
            one.documentation,
            [(name, labels, value, _exemplar(exemplar)) for name, labels, value, _, exemplar, *_ in one.samples],
        )
        for one in registry.collect()
    ]


def merge(groups: Iterable[Iterable[Family]]) -> list[Family]:
    """The families of several processes as one: counters and histograms are summed, gauges follow `GAUGE_MERGE`.

    Of several exemplars of a sample the latest stays.
    """
    merged: dict[str, tuple[Family, dict[tuple[str | tuple[str, str], ...], int]]] = {}
    for family in (family for group in groups for family in group):
        if family.name not in merged:
            merged[family.name] = (msgspec.structs.replace(family, samples=[]), {})
        target, positions = merged[family.name]
        combine: Callable[[float, float], float] = GAUGE_MERGE.get(family.name, operator.add)
        samples = target.samples
        for sample in family.samples:
            name, labels, value, exemplar = sample
            at = positions.setdefault((name, *labels.items()), len(samples))
            if at == len(samples):
                samples.append(sample)
            else:
                _, _, before, other = samples[at]
                samples[at] = (name, labels, combine(before, value), max(exemplar, other, key=_time_s))
    return [family for family, _ in merged.values()]


def _exemplar(exemplar: CountedExemplar | None) -> Exemplar | None:
    return None if exemplar is None else (exemplar.labels, exemplar.value, float(exemplar.timestamp or 0))


def _time_s(exemplar: Exemplar | None) -> float:
    return 0.0 if exemplar is None else exemplar[2]


def start_of(pid: int) -> int | None:
    """When a process started, in ticks of the kernel since the machine did; None where none such runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class SnapshotFolder:
    """The folder. It is made again after it was deleted, as long as the folder above it exists.

    `dropped` counts the snapshots that could not be written, `unreadable` those that could not be read.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._known: dict[str, tuple[tuple[int, ...], Snapshot]] = {}
        """By role: the file's state and the snapshot that was read last."""
        self._warned_s: dict[str, float] = {}
        self.dropped = 0
        self.unreadable = 0

    def has(self, role: str) -> bool:
        try:
            return self._file(role).is_file()
        except OSError:  # no access to the folder
            return False

    def write(self, role: str, data: bytes) -> bool:
        """Replace the snapshot of a role; whether that succeeded."""
        file = self._file(role)
        unfinished = file.with_suffix(".unfinished")
        try:
            self._path.mkdir(mode=0o700, exist_ok=True)
            try:
                unfinished.write_bytes(data)
                unfinished.replace(file)
            except OSError:
                with contextlib.suppress(OSError):
                    unfinished.unlink(missing_ok=True)  # a full disk needs its space
                raise
        except OSError as error:
            self.drop(error)
            return False
        return True

    def drop(self, error: Exception) -> None:
        """Count a snapshot that is lost."""
        self.dropped += 1
        self._warn("metrics cannot be shared with the other processes", error)

    def read(self, role: str) -> Snapshot | None:
        """The newest readable snapshot of a role, if there was any."""
        file, known = self._file(role), self._known.get(role)
        try:
            status = file.stat()
            state = (status.st_ino, status.st_mtime_ns, status.st_size)
            if known is None or known[0] != state:
                known = self._known[role] = (state, _decode(file))
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError, ValueError) as error:
            self.unreadable += 1
            self._warn("the metrics of a process are left out: its snapshot cannot be read", error, role=role)
        return known[1] if known else None

    def read_others(self, role: str) -> dict[str, Snapshot]:
        """The snapshots of all roles but this one."""
        with contextlib.suppress(OSError):
            for file in self._path.iterdir():
                if file.suffix == SUFFIX:
                    self.read(file.stem)
        others = sorted(self._known.keys() - {role})
        # What was deleted or damaged stays as it was: a counter that falls and rises again would look like many events.
        return {other: self._known[other][1] for other in others}

    def _file(self, role: str) -> Path:
        return self._path / f"{role}{SUFFIX}"

    def _warn(self, event: str, error: Exception, **fields: str) -> None:
        """Log at a bounded rate: attempts repeat all the time."""
        now_s = self._clock()
        if now_s - self._warned_s.get(event, -WARNING_INTERVAL_S) >= WARNING_INTERVAL_S:
            self._warned_s[event] = now_s
            log.warning(event, folder=str(self._path), error=str(error), **fields)


def _decode(file: Path) -> Snapshot:
    """Raises OSError, msgspec.DecodeError or ValueError."""
    with file.open("rb") as opened:
        data = opened.read(MAX_SNAPSHOT_BYTES + 1)
    if len(data) > MAX_SNAPSHOT_BYTES:
        raise ValueError(f"longer than {MAX_SNAPSHOT_BYTES} bytes")
    snapshot = msgspec.msgpack.decode(data, type=Snapshot)
    if snapshot.format != FORMAT:
        raise ValueError(f"format {snapshot.format}; expected {FORMAT}")
    return snapshot


class SnapshotPublisher:
    """Publishes the metrics of this process: use as a context manager. A thread of its own does the work.

    It continues from the last snapshot of its role, which it reads when it is made.
    """

    def __init__(self, folder: SnapshotFolder, role: str, registry: CollectorRegistry) -> None:
        self.role = role
        self.folder = folder
        self._registry = registry
        before = folder.read(role)
        self._inherited = before.lasting() if before else []
        self._pid = os.getpid()
        self._start = start_of(self._pid)
        self._published = b""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def __enter__(self) -> SnapshotPublisher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(LAST_PUBLISH_S)  # a file system may hang

    def publish(self) -> list[Family]:
        """Publish what changed since the last time, and return all metrics of this role. It does not fail."""
        with self._lock:
            families = merge((self._inherited, families_of(self._registry)))
            data = msgspec.msgpack.encode(Snapshot(FORMAT, self._pid, self._start, families))
            if (data != self._published or not self.folder.has(self.role)) and self.folder.write(self.role, data):
                self._published = data
            return families

    def others(self) -> Mapping[str, Snapshot]:
        """The other roles' snapshots, without the gauges of processes that have ended."""
        with self._lock:
            snapshots = self.folder.read_others(self.role)
        return {
            role: one if one.is_live() else msgspec.structs.replace(one, families=one.lasting(), pid=0)
            for role, one in snapshots.items()
        }

    def _run(self) -> None:
        while True:
            try:
                self.publish()
            except Exception as error:  # such as a lack of memory: the next attempt may succeed
                self.folder.drop(error)
            if self._stopping.is_set():
                return
            self._stopping.wait(PUBLISH_INTERVAL_S)
