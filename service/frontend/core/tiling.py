"""Large pictures in tiles: what their windows take, their jobs, and their outputs joined to one.

Each window is a job of its own, all of them in flight together. The first that fails fails the picture, and cancels the
others. Windows count as images wherever a front-end or a worker counts: in progress, in estimates, in rates.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec

from model.bundle import BundleConfig
from model.containers.header import Header
from model.decode import DecodeLimits, Picture, decode_picture
from model.errors import ConvMLPError, ImageTooLarge
from model.families.registry import family_of
from model.postprocess.tile_detections import join_detections
from model.postprocess.tile_segments import blend_segments
from model.preprocess import largest_input_bytes, prepare_picture
from model.spec import DetectPostSpec, Preprocessing, SegmentPostSpec
from model.tiles import TiledInput, Tiling, count_windows, needs_whole, plan_tiles, prepare_tiles
from model.types import (
    MAX_LOGITS,
    DetectOutput,
    Image,
    LogitsOutput,
    ModelInput,
    QueryParams,
    RawOutput,
    Size,
    Task,
)
from service.errors import DeadlineExceeded, Overloaded, error_of_part
from service.frontend.core.executor import Work
from service.types import ModelStatus, PredictRequest
from service.wire.pool import WorkerPool

T = TypeVar("T")

PICTURE_BYTES = 4
"""Of memory for each pixel of a decoded picture that windows are cut from."""
LOGIT_BYTES, CELL_PIXELS = 4, 16
"""Of memory for a logit and its class; pixels of the input for each of its cells."""
DETECTION_BYTES, MASK_BYTES = 32, 4 * 28 * 28
"""Of memory for a detection, and for its mask."""


@dataclass(frozen=True, slots=True)
class TilePlan:
    """How a picture is cut for one model, as far as its header shows it.

    `jobs`: the largest number of its network inputs. `input_bytes`, `output_bytes`: of memory for all of them, and for
    their outputs.
    """

    tiling: Tiling
    spec: Preprocessing
    task: Task
    limit: int
    jobs: int
    input_bytes: int
    output_bytes: int

    def prepare(self, picture: Picture, before_each: Callable[[], None]) -> ModelInput | TiledInput:
        """The inputs of a picture that was decoded at its full size; of a single window that of the whole picture.

        Raises:
            ImageTooLarge: there are more windows than are allowed.
            DeadlineExceeded: `before_each` raises it.
        """
        grid = plan_tiles(picture.original, self.tiling, self.spec, self.limit)
        if len(grid) == 1:
            return prepare_picture(picture, self.spec)
        return prepare_tiles(picture, self.spec, grid, whole=needs_whole(self.task), before_each=before_each)


def tile_plan(tiling: Tiling, stored: Size, config: BundleConfig, params: QueryParams, limit: int) -> TilePlan | None:
    """How a picture is cut whose size is `stored`, before its orientation is applied; None if it is a single window.

    Raises:
        ImageTooLarge: there are more windows than `limit`, whatever the orientation.
    """
    spec, task = config.preprocessing, config.task
    sizes = (stored, Size(stored.width, stored.height))
    counts = [count_windows(size, tiling, spec, limit) for size in sizes]
    if max(counts) == 1:
        return None
    if min(counts) > limit:
        plan_tiles(stored, tiling, spec, limit)
    jobs = min(max(counts), limit) + needs_whole(task)
    input_bytes = largest_input_bytes(spec)
    if task is Task.SEGMENT:
        output_bytes = LOGIT_BYTES * min(MAX_LOGITS, len(config.labels)) * input_bytes // (3 * CELL_PIXELS)
    else:
        with_masks = params.masks and family_of(config.architecture).masks
        output_bytes = params.max_detections * (DETECTION_BYTES + with_masks * MASK_BYTES)
    return TilePlan(tiling, spec, task, limit, jobs, jobs * input_bytes, jobs * output_bytes)


def tile_work(whole: Work[Any], plan: TilePlan, limits: DecodeLimits, max_bytes: int) -> Work[Any]:
    """The decoding of an image, and the cutting and resizing of its windows.

    Args:
        whole: the decoding and resizing of the image as it is: `PreparePool.prepare`. It is changed.
        plan: how it is cut.
        limits: of images.
        max_bytes: of memory.

    Raises:
        ImageTooLarge: it takes more memory than there is.
    """
    image, _, header = whole.args
    whole.call, whole.args = prepare_tiled, (image, header, limits, plan, partial(require_time, whole))
    whole.images = plan.jobs
    charge_tiles(whole, (plan,), header.size if isinstance(header, Header) else image.size, max_bytes)
    return whole


def charge_tiles(work: Work[Any], plans: Collection[TilePlan], size: Size, max_bytes: int) -> None:
    """Add what windows take to the memory and the cost of work that cuts an image of this size.

    Raises:
        ImageTooLarge: it takes more memory than there is.
    """
    input_bytes = sum(plan.input_bytes for plan in plans)
    work.cost += input_bytes // 3
    work.reserved_bytes += input_bytes + sum(plan.output_bytes for plan in plans)
    work.nbytes = max(work.nbytes, PICTURE_BYTES * size.height * size.width + input_bytes, work.reserved_bytes)
    if work.nbytes > max_bytes:
        raise ImageTooLarge(
            f"to cut the image into windows takes up to {work.nbytes:,} bytes of memory; the limit is {max_bytes:,}; "
            "use larger tiles, or scale the image down"
        )


def require_time(work: Work[Any]) -> None:
    """Raises DeadlineExceeded where nobody waits for work any more."""
    if work.released or work.future.done() or time.monotonic() >= work.deadline_s:
        raise DeadlineExceeded("the request timed out while its image was cut into windows")


def prepare_tiled(
    image: bytes | Image, header: Header | None, limits: DecodeLimits, plan: TilePlan, before_each: Callable[[], None]
) -> ModelInput | TiledInput:
    """Decode an image at its full size, and cut it. Call it in a thread.

    Raises:
        ImageUndecodable, UnsupportedFormat, ImageTooLarge, OutOfMemory: as `model.decode.decode`.
        ImageTooLarge, DeadlineExceeded: as `TilePlan.prepare`.
    """
    if isinstance(image, Image):
        return plan.prepare(Picture(image.pixels, image.size), before_each)
    return plan.prepare(decode_picture(image, limits, None, header, plan.spec.reader), before_each)


@dataclass(frozen=True, slots=True)
class TiledOutput:
    """The outputs of a picture's windows, in the order of the inputs."""

    tiled: TiledInput
    outputs: tuple[RawOutput, ...]
    params: QueryParams
    deadline_s: float

    def join(self, config: BundleConfig) -> RawOutput:
        """The picture's output. Call it in a thread.

        Raises:
            DeadlineExceeded: `deadline_s` passed meanwhile.
        """
        match config.postprocessing, self.outputs:
            case DetectPostSpec() as spec, (DetectOutput(), *_):
                outputs = [output for output in self.outputs if isinstance(output, DetectOutput)]
                return join_detections(outputs, self.tiled.windows(), self.params, spec, self._require_time)
            case SegmentPostSpec() as spec, (LogitsOutput(), *_):
                logits = [output for output in self.outputs if isinstance(output, LogitsOutput)]
                classes = len(config.labels)
                return blend_segments(
                    logits, self.tiled, classes, self.params, self._require_time, threshold=spec.threshold
                )
            case _, (first, *_):
                raise TypeError(f"windows of model {config.name} have a {type(first).__name__}, which cannot be joined")
        raise TypeError("there are no windows")

    def _require_time(self) -> None:
        if time.monotonic() >= self.deadline_s:
            raise DeadlineExceeded("the request timed out while the answers of its windows were joined")


Encode = Callable[[RawOutput, BundleConfig, Size], T]


def join_and_encode(encode: Encode[T], output: TiledOutput, config: BundleConfig, size: Size) -> T:
    """`encode` of the joined output. Raises as `TiledOutput.join`."""
    return encode(output.join(config), config, size)


@dataclass(frozen=True, slots=True)
class TiledAnswer:
    """The answers of a picture's windows. `queue_s` and `infer_s` are those of the window that took longest, and
    `batch_images` is the size of the largest batch; `precision` is what the network computed in."""

    output: TiledOutput
    queue_s: float
    infer_s: float
    batch_images: int
    precision: str


async def predict_windows(
    workers: WorkerPool, request: PredictRequest, model: ModelStatus, tiled: TiledInput, params: QueryParams
) -> TiledAnswer:
    """The outputs of all windows. Cancelling the call cancels their jobs.

    Raises:
        ConvMLPError: the error of the first window that failed, as `WorkerPool.predict`.
    """
    of_window = window_params(params, model.config.task)
    jobs = [
        asyncio.ensure_future(workers.predict(request.id, model, one, of_window, request.deadline_s))
        for one in tiled.inputs
    ]
    try:
        answers = await asyncio.gather(*jobs)
    except ConvMLPError as error:
        failed = next(index for index, job in enumerate(jobs) if job.done() and job.exception() is error)
        part = f"window {failed + 1} of {len(jobs)}"
        if isinstance(error, DeadlineExceeded | Overloaded):
            part = f"{part} (larger tiles are fewer, and take less time)"
        raise error_of_part(error, part) from None
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
    slowest = max(answers, key=lambda answer: answer.queue_s + answer.infer_s)
    return TiledAnswer(
        TiledOutput(tiled, tuple(answer.output for answer in answers), params, request.deadline_s),
        slowest.queue_s,
        slowest.infer_s,
        max(answer.batch_images for answer in answers),
        ",".join(dict.fromkeys(answer.precision for answer in answers)),
    )


def window_params(params: QueryParams, task: Task) -> QueryParams:
    """The parameters of a window's job: what can be decided only of the whole picture is left open."""
    if task is Task.SEGMENT:
        return QueryParams(logits=True, threshold=params.threshold)
    return msgspec.structs.replace(params, min_area=0)
