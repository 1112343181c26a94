"""`convmlp watch SOURCE`: predicts the frames of a folder, a camera or a video, as they come."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import ConvMLPError
from model.types import Task
from service.cli.console import print_error, printable
from service.cli.options import (
    BACKEND,
    OUTPUT,
    PARAMETERS,
    AgnosticNms,
    ApiKey,
    Classes,
    IouThreshold,
    MaskFormat,
    Masks,
    MaxDetections,
    MinArea,
    Model,
    PixelThreshold,
    Threshold,
    TileOverlap,
    Tiles,
    TopK,
    query_string,
)
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.cli.sources.frame import FrameSource

DEFAULT_URL = "grpc://127.0.0.1:8001"
DEFAULT_TIMEOUT_MS = 10_000

SOURCE_PANEL = "Source"

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder that fills, http://CAMERA/… (MJPEG), a video file, or rtsp://CAMERA/….",
    ),
]
TaskOption = Annotated[Task, typer.Option("--task", help="What to predict.", rich_help_panel=PARAMETERS)]
Fps = Annotated[
    float | None,
    typer.Option(help="Frames in a second, at most. Default: all that come.", rich_help_panel=SOURCE_PANEL),
]
Existing = Annotated[
    bool,
    typer.Option(
        "--existing", help="Of a folder: also the files that are there at the start.", rich_help_panel=SOURCE_PANEL
    ),
]
Reconnects = Annotated[
    int,
    typer.Option(
        min=0,
        help="How often to open a lost source again before giving up, after growing pauses.",
        rich_help_panel=SOURCE_PANEL,
    ),
]
InFlight = Annotated[
    int,
    typer.Option(
        min=1,
        max=64,
        help="Frames in progress, at most. Of those that come meanwhile the newest is kept.",
        rich_help_panel=BACKEND,
    ),
]
Url = Annotated[
    str,
    typer.Option(
        envvar="CONVMLP_URL",
        help="The running service: grpc://HOST:PORT, grpcs://…, http://HOST:PORT or https://….",
        rich_help_panel=BACKEND,
    ),
]
TimeoutMs = Annotated[
    int, typer.Option(min=1, help="Deadline for each frame, in milliseconds.", rich_help_panel=BACKEND)
]
SaveFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Also draw each result on its frame, into a JPEG file here.", rich_help_panel=OUTPUT
    ),
]
WebhookUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Also POST each line to this address.", rich_help_panel=OUTPUT),
]


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """The flags but those of the prediction's parameters."""

    source: str
    task: Task
    fps: float | None
    existing: bool
    reconnects: int
    in_flight: int
    url: str
    api_key: str | None
    timeout_ms: int
    save: Path | None
    webhook: str | None


def watch(
    source: Source,
    task: TaskOption = Task.DETECT,
    fps: Fps = None,
    existing: Existing = False,
    reconnects: Reconnects = 10,
    model: Model = None,
    top_k: TopK = None,
    score_threshold: Threshold = None,
    max_detections: MaxDetections = None,
    classes: Classes = None,
    iou_threshold: IouThreshold = None,
    agnostic_nms: AgnosticNms = None,
    min_area: MinArea = None,
    threshold: PixelThreshold = None,
    tiles: Tiles = None,
    tile_overlap: TileOverlap = None,
    masks: Masks = None,
    mask_format: MaskFormat = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    timeout_ms: TimeoutMs = DEFAULT_TIMEOUT_MS,
    in_flight: InFlight = 2,
    save: SaveFolder = None,
    webhook: WebhookUrl = None,
) -> None:
    """Watch a folder, a camera or a video: print a line of JSON for each frame.

    Where a camera is faster than the service, frames are dropped, and the newest one is next. Files are never dropped.
    """
    parameters = {
        "model": model,
        "top_k": top_k,
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "classes": classes,
        "iou_threshold": iou_threshold,
        "agnostic_nms": agnostic_nms,
        "min_area": min_area,
        "threshold": threshold,
        "tiles": tiles,
        "tile_overlap": tile_overlap,
        "masks": masks,
        "mask_format": mask_format,
    }
    given = {name: value for name, value in parameters.items() if value is not None}
    options = WatchOptions(source, task, fps, existing, reconnects, in_flight, url, api_key, timeout_ms, save, webhook)
    _check(options, given)
    status = asyncio.run(_watch(options, given))
    if status:
        raise typer.Exit(status)


def _check(options: WatchOptions, given: Mapping[str, str | float]) -> None:
    """Raises typer.BadParameter."""
    from service.frontend.api.rest.query import read_query

    try:
        read_query(options.task, query_string(given))
    except BadParameter as error:
        raise typer.BadParameter(error.detail) from None
    if options.fps is not None and not 0 < options.fps <= 1000:
        raise typer.BadParameter(f"--fps is {options.fps:g}; expected a number above 0, up to 1000")
    folder = Path(options.source)
    if "://" not in options.source and folder.is_dir():
        if options.fps is not None:
            raise typer.BadParameter("--fps is for cameras and videos; each file of a folder is a picture")
        if options.save is not None and options.save.resolve() == folder.resolve():
            raise typer.BadParameter("--save is the folder that is watched; name another one")
    elif options.existing:
        raise typer.BadParameter("--existing is for a folder")


async def _watch(options: WatchOptions, given: Mapping[str, str | float]) -> int:
    """The exit status."""
    from contextlib import AsyncExitStack

    from service.cli.backends import open_client
    from service.cli.sources.feed import Feed
    from service.cli.watching import Watching
    from service.cli.webhook import Webhook

    try:
        source = _open_source(options)
        webhook = None if options.webhook is None else Webhook(options.webhook, print_error)
        client = open_client(options.url, options.api_key, options.timeout_ms, options.in_flight, retries=0)
    except BadParameter as error:
        raise typer.BadParameter(error.detail) from None
    except ValueError as error:
        raise typer.BadParameter(f"--webhook: {error}") from None
    feed = Feed(source, options.fps, options.reconnects, print_error)
    stopped: list[signal.Signals] = []
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        feed.stop()
        stopped.append(number)
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process, whatever it waits for

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    watching = Watching(options.task, feed, options.save, webhook)
    status = 0
    try:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(client.aclose)
            if webhook is not None:
                await stack.enter_async_context(webhook)
            await watching.run(client, given, options.in_flight)
    except ConvMLPError as error:
        print_error(error.detail)
        status = 1
    finally:
        watching.print_summary()
    return 128 + stopped[0] if stopped else status


def _open_source(options: WatchOptions) -> FrameSource:
    """Raises typer.BadParameter, typer.Exit."""
    from service.cli.sources.folder import FolderSource
    from service.cli.sources.frame import shown
    from service.cli.sources.mjpeg import MjpegSource
    from service.cli.sources.video import LIVE_SCHEMES, VideoSource

    source = options.source
    scheme, separator, _ = source.partition("://")
    if separator and scheme in ("http", "https"):
        return MjpegSource(source)
    if separator and scheme not in LIVE_SCHEMES:
        schemes = ", ".join(("http", "https", *LIVE_SCHEMES))
        raise typer.BadParameter(f"{printable(shown(source))} has the scheme {printable(scheme)}; expected {schemes}")
    path = Path(source)
    if not separator and path.is_dir():
        return FolderSource(path, print_error, existing=options.existing)
    if not separator and not path.exists():
        raise typer.BadParameter(f"{printable(source)} does not exist; name a folder, a video file or a camera's URL")
    if find_spec("av") is None:
        print_error(f"{shown(source)} needs PyAV, which is not installed; install this package's extra `video`")
        raise typer.Exit(1)
    return VideoSource(source)
