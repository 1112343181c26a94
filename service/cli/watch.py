"""`convmlp watch SOURCE`: predicts the frames of a folder, a camera or a video, as they come."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import ConvMLPError
from model.types import Task
from service.cli.console import print_error, printable
from service.cli.options import ApiKey, Given, backend_flag, output_flag, parameter_flag, query_string, shared_flags
from service.errors import BadParameter

if TYPE_CHECKING:
    from service.cli.sources.frame import FrameSource

DEFAULT_URL = "grpc://127.0.0.1:8001"
DEFAULT_TIMEOUT_MS = 10_000

source_flag = partial(typer.Option, rich_help_panel="Source")

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder that fills, http://CAMERA/… (MJPEG), a video file, or rtsp://CAMERA/….",
    ),
]
TaskOption = Annotated[Task, parameter_flag("--task", help="What to predict.")]
Fps = Annotated[float | None, source_flag(help="Frames in a second, at most. Default: all that come.")]
Existing = Annotated[bool, source_flag("--existing", help="Of a folder: also the files that are there at the start.")]
Reconnects = Annotated[
    int, source_flag(min=0, help="How often to open a lost source again before giving up, after growing pauses.")
]
InFlight = Annotated[
    int,
    backend_flag(min=1, max=64, help="Frames in progress, at most. Of those that come meanwhile the newest is kept."),
]
Url = Annotated[
    str,
    backend_flag(
        envvar="CONVMLP_URL", help="The running service: grpc://HOST:PORT, grpcs://…, http://HOST:PORT or https://…."
    ),
]
TimeoutMs = Annotated[int, backend_flag(min=1, help="Deadline for each frame, in milliseconds.")]
SaveFolder = Annotated[
    Path | None, output_flag(metavar="FOLDER", help="Also draw each result on its frame, into a JPEG file here.")
]
WebhookUrl = Annotated[str | None, output_flag(metavar="URL", help="Also POST each line to this address.")]


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


@shared_flags(
    *("model", "top_k", "score_threshold", "max_detections", "classes", "iou_threshold", "agnostic_nms", "min_area"),
    *("threshold", "tiles", "tile_overlap", "masks", "mask_format"),
)
def watch(
    source: Source,
    *,
    task: TaskOption = Task.DETECT,
    fps: Fps = None,
    existing: Existing = False,
    reconnects: Reconnects = 10,
    given: Given,
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
    options = WatchOptions(source, task, fps, existing, reconnects, in_flight, url, api_key, timeout_ms, save, webhook)
    _check(options, given)
    status = asyncio.run(_watch(options, given))
    if status:
        raise typer.Exit(status)


def _check(options: WatchOptions, given: Given) -> None:
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


async def _watch(options: WatchOptions, given: Given) -> int:
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
