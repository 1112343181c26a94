"""Stand-ins for the device, and nothing else: everything above `Runner` in the tests is the real thing."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from model.bundle import CONFIG_FILE, WEIGHTS_FILE, Bundle, BundleConfig, Source
from model.errors import BundleInvalid
from model.families.classifier import ClassifierSpec
from model.families.convmlp import ConvMLPSpec
from model.families.mask_rcnn import MaskRCNNSpec
from model.families.registry import Architecture
from model.families.retinanet import RetinaNetSpec
from model.families.semantic_fpn import SemanticFPNSpec
from model.postprocess.results import postprocess
from model.reference import (
    REFERENCE_PARAMS,
    ClassifyReference,
    DetectReference,
    ReferenceAnswer,
    ScoredIndex,
    SegmentReference,
    reference_input,
    summarise,
)
from model.spec import CenterCropSpec, ClassifyPostSpec, DetectPostSpec, KeepRatioSpec, Postprocessing, SegmentPostSpec
from model.types import (
    AS_TRAINED,
    Batch,
    ClassifyOutput,
    Deployment,
    DetectOutput,
    EmbedOutput,
    Geometry,
    LogitsOutput,
    Palette,
    QueryParams,
    RawOutput,
    SegmentOutput,
    Task,
    UInt8Array,
)
from service.observability.metrics import WorkerMetrics
from service.observability.tracing import NO_TRACING, Tracing
from service.settings import Settings
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.runner import OutOfDeviceMemory, Outputs, finite_outputs
from service.worker.state_folder import StateFolder
from service.worker.tuning import BestBatch
from service.worker.worker import Worker
from tests.model.batches import segment_output
from tests.waiting import PATIENCE_S

REQUEST_S = 2 * PATIENCE_S
"""A request's time, where a test does not set it: a test may start a process while the device holds a request."""
HELD_S = 2 * REQUEST_S
"""No test holds the device for longer, unless it forgot it."""

TINY_BACKBONE = ConvMLPSpec(
    tokenizer_channels=8, conv_blocks=1, stage_channels=(8, 16, 24), stage_depths=(1, 1, 1), mlp_ratios=(2, 2, 2)
)
CLASSES = 256
_LABELS = {
    Task.CLASSIFY: tuple(f"grey {level}" for level in range(CLASSES)),
    Task.DETECT: ("cat", "dog"),
    Task.SEGMENT: ("background", "cat", "dog"),
}
_PARTS: dict[Task, tuple[Architecture, Postprocessing, ReferenceAnswer]] = {
    Task.CLASSIFY: (ClassifierSpec(backbone=TINY_BACKBONE), ClassifyPostSpec(), ClassifyReference(labels=())),
    Task.DETECT: (
        RetinaNetSpec(backbone=TINY_BACKBONE, fpn_channels=8, head_convs=1),
        DetectPostSpec(),
        DetectReference(detections=()),
    ),
    Task.SEGMENT: (
        SemanticFPNSpec(backbone=TINY_BACKBONE, fpn_channels=8, head_channels=8),
        SegmentPostSpec(),
        SegmentReference(grid=()),
    ),
}


def fake_answer(task: Task, pixels: UInt8Array, geometry: Geometry, params: QueryParams) -> RawOutput:
    """An answer that depends on the picture: the class is the mean grey level of the input, 0 to 255."""
    level = int(pixels.mean())
    height, width = geometry.original.height, geometry.original.width
    match task:
        case Task.CLASSIFY if params.embed:
            return EmbedOutput((level + np.arange(TINY_BACKBONE.embedding_dimension) / 3).astype(np.float32))
        case Task.CLASSIFY:
            count = min(params.top_k, CLASSES)
            indices = (level + np.arange(count)) % CLASSES
            return ClassifyOutput(indices, (0.5 ** np.arange(1, count + 1)).astype(np.float32))
        case Task.DETECT:
            boxes = np.array([[0, 0, width / 2, height / 2], [width / 4, height / 4, width, height]], np.float32)
            scores = np.array([0.9, 0.6], np.float32)
            threshold = params.score_threshold if params.score_threshold is not None else 0.05
            kept = int((scores > threshold).sum().clip(max=params.max_detections))
            logits = np.full((kept, 28, 28), 4.0, np.float32) if params.masks else None
            return DetectOutput(boxes[:kept], scores[:kept], np.array([level % 2, 1])[:kept], logits)
        case Task.SEGMENT if params.logits:
            best = 1 + level % 2
            cells = np.full((len(_LABELS[task]), pixels.shape[0] // 4, pixels.shape[1] // 4), -4.0, np.float16)
            cells[best] = 4.0
            classes = np.broadcast_to(np.arange(len(cells), dtype=np.uint8)[:, None, None], cells.shape)
            return LogitsOutput(cells, np.ascontiguousarray(classes))
        case Task.SEGMENT:
            label_map = np.zeros((height, width), np.uint8)
            label_map[:, int(width * (params.threshold or 0.5)) :] = 1 + level % 2
            return segment_output(label_map, CLASSES, params)


def fake_bundle(task: Task, name: str | None = None, weights: bytes = b"") -> Bundle:
    """A bundle, by default named `fake_<task>`, whose reference answer is the fake runner's; it has no files."""
    architecture, postprocessing, no_answer = _PARTS[task]
    config = BundleConfig(
        name=name or f"fake_{task.value}",
        task=task,
        architecture=architecture,
        labels=_LABELS[task],
        preprocessing=(
            CenterCropSpec(resize_shorter=36, crop=32)
            if task is Task.CLASSIFY
            else KeepRatioSpec(long_side=96, short_side=64, pad_multiple=32)
        ),
        postprocessing=postprocessing,
        precision="fp32",
        source=Source(description="made for tests", url="", licence="none", attribution=""),
        reference=no_answer,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
    )
    ready = reference_input(config.preprocessing)
    answer = fake_answer(task, ready.pixels, ready.geometry, REFERENCE_PARAMS)
    reference = summarise(postprocess(answer, config, ready.geometry.original))
    return Bundle(Path(config.name), config.model_copy(update={"reference": reference}))


def fake_instances() -> Bundle:
    """The fake detector once more, named `fake_instances`, of the family whose detectors have masks."""
    bundle = fake_bundle(Task.DETECT)
    changes = {"name": "fake_instances", "architecture": MaskRCNNSpec(backbone=TINY_BACKBONE)}
    return Bundle(Path("fake_instances"), bundle.config.model_copy(update=changes))


def fake_binary() -> Bundle:
    """The fake segmenter once more, named `fake_binary`, with the threshold of a network with one output channel."""
    bundle = fake_bundle(Task.SEGMENT)
    changes = {"name": "fake_binary", "postprocessing": SegmentPostSpec(threshold=0.5)}
    return Bundle(Path("fake_binary"), bundle.config.model_copy(update=changes))


def coloured(task: Task, palette: Palette) -> Bundle:
    """The fake model of a task once more, named `coloured_<task>`, with a palette."""
    config = fake_bundle(task).config.model_copy(update={"name": f"coloured_{task.value}", "palette": palette})
    return Bundle(Path(config.name), config)


def lying_bundle(name: str) -> Bundle:
    """A fake classifier whose answer differs from its bundle's reference."""
    bundle = fake_bundle(Task.CLASSIFY, name)
    reference = ClassifyReference(labels=(ScoredIndex(index=1, score=0.9),))
    return Bundle(bundle.folder, bundle.config.model_copy(update={"reference": reference}))


def store_bundle(store: Path, bundle: Bundle, weights: bytes = b"") -> Bundle:
    """Write a fake bundle into a store, in the place of the one of its name."""
    folder = store / bundle.config.name
    folder.mkdir(exist_ok=True)
    (folder / WEIGHTS_FILE).write_bytes(weights)
    (folder / CONFIG_FILE).write_text(bundle.config.model_dump_json())
    return Bundle(folder, bundle.config)


@dataclass
class FakeClock:
    """A clock that the test moves."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class FakeRunner:
    """Answers with `fake_answer`. Clearing `unblocked` holds every batch on the device until it is set again."""

    bundles: Sequence[Bundle] = ()
    """The models in the slots of their names from the start."""
    unblocked: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    """See `block`."""
    reading: threading.Event = field(default_factory=threading.Event)
    """Clearing it holds every model that is being read from disk."""
    memory_images: int | None = None
    """A batch of more images than this runs out of device memory."""
    memory_models: int | None = None
    """More models than this do not fit on the device."""
    shift: int = 0
    """Added to the grey level of every input: a model whose answers are wrong."""
    not_finite: Container[int] = ()
    """Inputs whose mean grey level is one of these have an output with NaN."""
    poison: int | None = None
    """An input whose mean grey level is this makes the whole batch fail."""
    damaged: frozenset[str] = frozenset()
    """Models whose weights do not fit."""
    damaged_slots: frozenset[str] = frozenset()
    """Slots whose model answers wrongly."""
    most_read_at_once: int = 0
    """The most models that were being read from disk at one time."""
    batches: list[tuple[str, int]] = field(default_factory=list)
    """Each batch that ran: its model, its images."""
    params: list[QueryParams] = field(default_factory=list)
    """Those of each image that ran."""
    shares: list[int] = field(default_factory=list)
    """The lanes of each batch that ran."""
    taken_at_once: list[int] = field(default_factory=list)
    """The lanes that were taken when each of them began."""
    takes: Callable[[str, int, int], None] | None = None
    """Called with each batch's model, images and lanes while it runs: may move a test's clock, or raise."""
    slots: dict[str, Bundle] = field(default_factory=dict)
    """The models in memory, by slot."""
    device: str = "cpu"
    identity: tuple[str, ...] = ("a fake device",)
    measuring_s: float = 0.0
    doubtful_measurements: int = 0
    """So many measurements of a precision are not trustworthy, before the others are."""
    measured_again: list[bool] = field(default_factory=list)
    """Each measurement of a precision: whether it might go on."""
    lanes: int = 1
    can_overlap: bool = False
    lost: bool = False
    """The device fails when it is pinged."""
    pings: int = 0
    """How often it answered a ping."""
    levels: threading.local = field(default_factory=threading.local)
    """`levels.of_batch`, in a thread that runs a batch: the grey level of each of its inputs."""
    _read_now: int = 0
    _lanes_taken: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.unblocked.set()
        self.reading.set()
        self.slots.update({bundle.config.name: bundle for bundle in self.bundles})

    @property
    def max_lanes_per_batch(self) -> int:
        return self.lanes

    def block(self) -> threading.Event:
        """Block the device until `unblocked` is set; the event that its next batch has begun, and is held."""
        self.held, self.unblocked = threading.Event(), threading.Event()
        return self.held

    def block_after(self, batches: int) -> None:
        """Block the device while it computes the last of so many more batches: the next one waits for `unblocked`."""
        last = len(self.batches) + batches

        def hold(*_: object) -> None:
            if len(self.batches) >= last:
                self.unblocked.clear()

        self.takes = hold

    def load(self, slot: str, bundle: Bundle) -> Callable[[], None]:
        self._read_now += 1
        self.most_read_at_once = max(self.most_read_at_once, self._read_now)
        assert self.reading.wait(HELD_S), "a test left reading held"
        self._read_now -= 1
        if bundle.config.name in self.damaged:
            raise BundleInvalid(f"bundle {bundle.folder}: the weights do not fit")

        def put() -> None:
            if self.memory_models is not None and len(self.slots) >= self.memory_models:
                raise OutOfDeviceMemory(f"{len(self.slots)} models are there already")
            self.slots[slot] = bundle

        return put

    def measure_again(self, slot: str, bundle: Bundle, may_go_on: Callable[[], bool]) -> bool | None:
        assert self.slots[slot] == bundle
        self.measured_again.append(may_go_on())
        return len(self.measured_again) > self.doubtful_measurements

    def remove(self, slot: str) -> None:
        self.slots.pop(slot, None)

    def deployment(self, slot: str) -> Deployment:  # noqa: ARG002 - the protocol's
        return AS_TRAINED

    def precision(self, slot: str) -> str:
        assert slot in self.slots
        return "fp32"

    def run(self, slot: str, batch: Batch, lanes: int) -> Outputs:
        with self._lock:
            self._lanes_taken += lanes
            self.taken_at_once.append(self._lanes_taken)
            self.batches.append((self.slots[slot].config.name, len(batch)))
            self.params.extend(batch.params)
            self.shares.append(lanes)
        try:
            return self._answer(slot, batch, lanes)
        finally:
            with self._lock:
                self._lanes_taken -= lanes

    def _answer(self, slot: str, batch: Batch, lanes: int) -> Outputs:
        config = self.slots[slot].config
        unblocked, held = self.unblocked, self.held  # in this order: `block` sets them in the other
        if not unblocked.is_set():
            held.set()
        assert unblocked.wait(HELD_S), "a test left the device blocked"
        self.levels.of_batch = [int(row.mean()) for row in batch.pixels]
        if self.takes is not None:
            self.takes(config.name, len(batch), lanes)
        if self.memory_images is not None and len(batch) > self.memory_images:
            raise OutOfDeviceMemory(f"{len(batch)} images")
        if self.poison is not None and any(int(row.mean()) == self.poison for row in batch.pixels):
            raise RuntimeError("poisoned input")
        assert slot in self.slots, "a model was let go while a batch ran on it"
        shift = 50 if slot in self.damaged_slots else self.shift
        rows = zip(batch.pixels, batch.geometries, batch.params, strict=True)
        return finite_outputs(
            self._spoil(fake_answer(config.task, pixels + np.uint8(shift), geometry, params), pixels)
            for pixels, geometry, params in rows
        )

    def _spoil(self, answer: RawOutput, pixels: UInt8Array) -> RawOutput:
        if int(pixels.mean()) not in self.not_finite:
            return answer
        if isinstance(answer, SegmentOutput | LogitsOutput):
            return replace(answer, finite=False)
        if isinstance(answer, EmbedOutput):
            return EmbedOutput(answer.embedding * np.float32("nan"))
        return replace(answer, scores=answer.scores * np.float32("nan"))

    def ping(self) -> None:
        if self.lost:
            raise RuntimeError("the device fell off the bus")
        self.pings += 1

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class FakeWorker:
    """A running worker: the real one, but for its device. `store` is the folder of its bundles."""

    address: str
    runner: FakeRunner
    registry: CollectorRegistry
    stop: asyncio.Event
    store: Path


def fake_settings(**overrides: Any) -> Settings:  # noqa: ANN401
    """Settings of a front-end and its worker, whose device is a fake."""
    return Settings(**{"heartbeat_interval_ms": 50, "request_timeout_ms": round(REQUEST_S * 1000), **overrides})


@asynccontextmanager
async def fake_worker(
    settings: Settings,
    address: str = "",
    tasks: Sequence[Task] = tuple(Task),
    more: Sequence[Bundle] = (),
    tracing: Tracing = NO_TRACING,
) -> AsyncIterator[FakeWorker]:
    """Serve fake bundles at `address`, by default an ipc address of its own, until the context ends.

    One for each of `tasks`, and `more` after them; they are also on disk, in `settings.models_dir` or a folder of
    the worker's own. Without a `settings.state_dir` nothing is measured: the best batch of each is the largest.
    """
    registry = CollectorRegistry()
    runner = FakeRunner()
    stop = asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="convmlp-test-") as folder:
        store = settings.models_dir or Path(folder)
        settings = settings.with_changes(models_dir=store)
        bundles = [store_bundle(store, bundle) for bundle in (*map(fake_bundle, tasks), *more)]
        metrics = WorkerMetrics(registry, {bundle.config.name: bundle.config.task.value for bundle in bundles})
        async with WorkerEndpoint(address or f"ipc://{folder}/worker") as endpoint:
            state_dir = settings.state_dir
            if state_dir is None:
                state_dir = Path(folder) / "state"
                for bundle in bundles:
                    _keep_best_batch(state_dir, bundle, settings)
            worker = Worker(bundles, lambda _: runner, settings, metrics, tracing, StateFolder(state_dir))
            serving = asyncio.create_task(worker.run(endpoint, stop))
            try:
                yield FakeWorker(endpoint.address, runner, registry, stop, store)
            finally:
                runner.reading.set()
                runner.unblocked.set()
                stop.set()
                await serving


_BEST_BATCHES: dict[tuple[str, int, int], tuple[str, bytes]] = {}
"""Name and content of a kept measurement, by the model's version and the limits of a batch."""


def _keep_best_batch(state_dir: Path, bundle: Bundle, settings: Settings) -> None:
    """As an earlier process would have. To measure a fake device takes most of a worker's start, and gives noise."""
    version, max_images, max_mpx = bundle.config.version, settings.max_batch_images, settings.max_batch_mpx
    if (version, max_images, max_mpx) not in _BEST_BATCHES:
        height, width, _ = reference_input(bundle.config.preprocessing).pixels.shape
        images = max(1, min(max_images, max_mpx * 10**6 // (height * width)))
        key = (version, "fp32", f"at most {images} images", *FakeRunner().identity)
        with tempfile.TemporaryDirectory() as folder:
            StateFolder(Path(folder)).write("batch", key, BestBatch(images, seconds=0.0005, whole=True))
            (file,) = Path(folder).rglob("*.json")
            _BEST_BATCHES[version, max_images, max_mpx] = file.name, file.read_bytes()
    name, content = _BEST_BATCHES[version, max_images, max_mpx]
    (state_dir / "measurements").mkdir(parents=True, exist_ok=True)
    (state_dir / "measurements" / name).write_bytes(content)
