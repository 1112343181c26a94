"""Stand-ins for the device, and nothing else: everything above `Runner` in the tests is the real thing."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from model.bundle import REFERENCE_PICTURE, Bundle, BundleConfig, Source
from model.decode import DecodeLimits, decode
from model.postprocess.finish import finish
from model.preprocess import prepare
from model.reference import (
    REFERENCE_PARAMS,
    ClassifyReference,
    DetectReference,
    ReferenceAnswer,
    SegmentReference,
    summarise,
)
from model.spec import (
    Architecture,
    BackboneSpec,
    CenterCropSpec,
    ClassifierSpec,
    ClassifyPostSpec,
    DetectPostSpec,
    KeepRatioSpec,
    Postprocessing,
    RetinaNetSpec,
    SegmentPostSpec,
    SemanticFPNSpec,
)
from model.types import (
    Batch,
    ClassifyOutput,
    DetectOutput,
    Geometry,
    QueryParams,
    RawOutput,
    SegmentOutput,
    Task,
    UInt8Array,
)
from service.metrics import WorkerMetrics
from service.settings import Settings
from service.wire.door import Door
from service.worker.runner import OutOfDeviceMemory
from service.worker.worker import Worker

TINY_BACKBONE = BackboneSpec(
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
    """An answer that tells pictures apart: the class is the mean grey level of the input, 0 to 255."""
    level = int(pixels.mean())
    height, width = geometry.original.height, geometry.original.width
    match task:
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
        case Task.SEGMENT:
            label_map = np.zeros((height, width), np.uint8)
            label_map[:, width // 2 :] = 1 + level % 2
            return SegmentOutput(label_map)


def fake_bundle(task: Task) -> Bundle:
    """A bundle named `fake_<task>` whose reference answer is the fake runner's; it has no files."""
    architecture, postprocessing, no_answer = _PARTS[task]
    config = BundleConfig(
        name=f"fake_{task.value}",
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
        weights_sha256="0" * 64,
    )
    picture = decode(REFERENCE_PICTURE.read_bytes(), DecodeLimits(max_bytes=10**7, max_pixels=10**7))
    ready = prepare(picture, config.preprocessing)
    answer = fake_answer(task, ready.pixels, ready.geometry, REFERENCE_PARAMS)
    reference = summarise(finish(answer, config, picture.size))
    return Bundle(Path(f"fake_{task.value}"), config.model_copy(update={"reference": reference}))


@dataclass
class FakeRunner:
    """Answers with `fake_answer`. Closing `gate` holds every batch at the device until it is opened again."""

    bundles: Sequence[Bundle]
    gate: threading.Event = field(default_factory=threading.Event)
    memory_images: int | None = None
    """A batch of more images than this runs out of device memory."""
    shift: int = 0
    """Added to the grey level of every input: a model whose answers are wrong."""
    poison: int | None = None
    """An input whose mean grey level is this makes the whole batch fail."""
    batches: list[tuple[str, int]] = field(default_factory=list)
    device: str = "cpu"
    precision: str = "fp32"

    def __post_init__(self) -> None:
        self.gate.set()

    def run(self, model: str, batch: Batch) -> tuple[RawOutput, ...]:
        self.batches.append((model, len(batch)))
        assert self.gate.wait(timeout=60), "a test left its gate closed"
        if self.memory_images is not None and len(batch) > self.memory_images:
            raise OutOfDeviceMemory(f"{len(batch)} images")
        if self.poison is not None and any(int(row.mean()) == self.poison for row in batch.pixels):
            raise RuntimeError("poisoned input")
        task = next(bundle.config.task for bundle in self.bundles if bundle.config.name == model)
        rows = zip(batch.pixels, batch.geometries, batch.params, strict=True)
        return tuple(
            fake_answer(task, pixels + np.uint8(self.shift), geometry, params) for pixels, geometry, params in rows
        )

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class FakeWorker:
    """A running worker: the real one, but for its device."""

    address: str
    runner: FakeRunner
    registry: CollectorRegistry
    stop: asyncio.Event


@asynccontextmanager
async def fake_worker(
    settings: Settings, address: str = "", tasks: Sequence[Task] = tuple(Task)
) -> AsyncIterator[FakeWorker]:
    """Serve fake bundles at `address`, by default an ipc address of its own, until the context ends."""
    bundles = [fake_bundle(task) for task in tasks]
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, {bundle.config.name: bundle.config.task.value for bundle in bundles})
    runner = FakeRunner(bundles)
    stop = asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="convmlp-test-") as folder:
        async with Door(address or f"ipc://{folder}/worker") as door:
            worker = Worker(bundles, lambda *_: runner, settings, metrics)
            serving = asyncio.create_task(worker.run(door, stop))
            try:
                yield FakeWorker(door.address, runner, registry, stop)
            finally:
                runner.gate.set()
                stop.set()
                await serving
