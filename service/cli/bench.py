"""`convmlp bench`: throughput and latency of a running service under load."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from model.errors import ConvMLPError
from model.reference import REFERENCE_PICTURE
from model.types import Task
from service.cli.console import counted, number_column, print_error, print_output, print_table, text_column
from service.cli.options import DEFAULT_URL, ApiKey, Model, Url, output_flag, parameter_flag

if TYPE_CHECKING:
    from service.cli.load.loops import Measurement, Sender

MAX_CONCURRENCY = 1024
MAX_RATE = 100_000.0
MAX_SECONDS = 3600.0
MAX_IMAGES_BYTES = 2**30
PERCENTS = (50, 90, 95, 99)

load_flag = partial(typer.Option, rich_help_panel="Load")

Images = Annotated[
    list[str] | None,
    typer.Argument(metavar="IMAGE|DIR", help="Images, as of `classify`, sent in turn. Default: a built-in photograph."),
]
Concurrency = Annotated[
    str | None,
    load_flag(
        metavar="N,N,…",
        help="Closed loop: N clients, each sending its next request after each answer. Default: 1,8,32.",
    ),
]
Rate = Annotated[
    str | None,
    load_flag(metavar="R,R,…", help="Open loop: R requests per second, whatever the service does (Poisson)."),
]
Seconds = Annotated[float, load_flag(min=0.1, max=MAX_SECONDS, help="Duration of each measurement, in seconds.")]
WarmUp = Annotated[float, load_flag(min=0.0, max=MAX_SECONDS, help="Load before each measurement, in seconds.")]
TimeoutMs = Annotated[int, load_flag(min=1, max=600_000, help="Deadline of each request, in milliseconds.")]
AsJson = Annotated[bool, output_flag("--json", help="Print JSON instead of a table.")]


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop of `concurrency` clients, or an open loop of `rate` requests per second."""

    concurrency: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        return counted(self.concurrency, "client") if self.concurrency is not None else f"{self.rate:g}/s"

    async def run(self, send: Sender, measurement: Measurement, warm_up_s: float) -> None:
        from service.cli.load.loops import closed_loop, open_loop

        if self.rate is not None:
            await open_loop(send, self.rate, measurement.seconds, warm_up_s, measurement=measurement)
        else:
            assert self.concurrency is not None
            await closed_loop(send, self.concurrency, measurement.seconds, warm_up_s, measurement)


def bench(
    images: Images = None,
    task: Annotated[Task, parameter_flag(help="The task of each request.")] = Task.CLASSIFY,
    model: Model = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    seconds: Seconds = 10.0,
    warm_up: WarmUp = 2.0,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    timeout_ms: TimeoutMs = 30_000,
    as_json: AsJson = False,
) -> None:
    """Load-test a running service: throughput, latency percentiles, errors.

    Test only services of your own.
    """
    import uvloop

    loads = _loads(concurrency, rate)
    try:
        encoded = _read(images or [str(REFERENCE_PICTURE)])
    except ConvMLPError as error:
        print_error(error.detail)
        raise typer.Exit(1) from None
    report = Report(url, task, len(encoded), as_json)
    try:
        status = uvloop.run(_bench(report, encoded, model, loads, seconds, warm_up, api_key, timeout_ms / 1000))
    except ValueError as error:
        raise typer.BadParameter(f"--url or --api-key: {error}") from None
    if status:
        raise typer.Exit(status)


async def _bench(
    report: Report,
    images: Sequence[bytes],
    model: str | None,
    loads: Sequence[Load],
    seconds: float,
    warm_up_s: float,
    api_key: str | None,
    timeout_s: float,
) -> int:
    """The exit status: 0, 1 if a measurement has no answer, or INTERRUPTED."""
    from service.cli.backends import remedy
    from service.cli.load.loops import Measurement, Status
    from service.cli.load.service import open_sender
    from service.cli.output import INTERRUPTED

    async with open_sender(report.url, report.task, images, model=model, timeout_s=timeout_s, api_key=api_key) as send:
        # An error of every request shows in the first one, before any load.
        first = await send(0)
        if first.status is Status.FAILED:
            print_error(f"the first request to {report.url} failed: {first.reason}{remedy(first.reason)}")
            return 1
        measurements: list[Measurement] = []
        status = 0
        try:
            for load in loads:
                measurements.append(Measurement(seconds))
                await load.run(send, measurements[-1], warm_up_s)
                report.print_progress(load, measurements[-1])
        except asyncio.CancelledError:  # Ctrl-C
            status = INTERRUPTED
            print_error(f"interrupted; the last of {len(measurements)} measurements is not complete")
        report.print(loads[: len(measurements)], measurements)
        return status or int(not all(measurement.latencies_s for measurement in measurements))


@dataclass(frozen=True, slots=True)
class Report:
    """What the command prints. `pictures`: the number of images."""

    url: str
    task: Task
    pictures: int
    as_json: bool

    def print_progress(self, load: Load, measurement: Measurement) -> None:
        """One line on stderr."""
        typer.echo(f"{load.name}: {measurement.per_second:.1f} answers/s", err=True)

    def print(self, loads: Sequence[Load], measurements: Sequence[Measurement]) -> None:
        """The table, or the JSON document, on stdout."""
        if self.as_json:
            measured = [_figures(load, measurement) for load, measurement in zip(loads, measurements, strict=True)]
            document = {"url": self.url, "task": self.task, "pictures": self.pictures, "measured": measured}
            print_output(msgspec.json.format(msgspec.json.encode(document), indent=2))
        else:
            self._print_table(loads, measurements)

    def _print_table(self, loads: Sequence[Load], measurements: Sequence[Measurement]) -> None:
        columns = [text_column("load"), *map(number_column, ("requests", "answers/s", "mean ms"))]
        columns += [number_column(f"p{percent} ms") for percent in PERCENTS]
        columns += [text_column("errors")]
        rows = []
        for load, measurement in zip(loads, measurements, strict=True):
            latencies_ms = (measurement.mean_ms, *measurement.percentiles_ms(*PERCENTS))
            latencies = ["-" if math.isnan(value) else f"{value:.1f}" for value in latencies_ms]
            errors = ", ".join(_errors(measurement)) or "-"
            rows.append([load.name, str(measurement.requests), f"{measurement.per_second:.1f}", *latencies, errors])
        print_table(columns, rows, title=f"{self.task} at {self.url}, {counted(self.pictures, 'image')}")


def _figures(load: Load, measurement: Measurement) -> dict[str, Any]:
    kind = (
        {"loop": "closed", "concurrency": load.concurrency}
        if load.rate is None
        else {"loop": "open", "rate": load.rate}
    )
    named = zip(PERCENTS, measurement.percentiles_ms(*PERCENTS), strict=True)
    latency = {"mean": measurement.mean_ms, **{f"p{percent}": value for percent, value in named}}
    return {
        **kind,
        "seconds": measurement.seconds,
        "requests": measurement.requests,
        "answers_per_second": measurement.per_second,
        "latency_ms": {name: None if math.isnan(value) else value for name, value in latency.items()},
        "refused": dict(measurement.refused),
        "failed": dict(measurement.failed),
        "unsent": measurement.unsent,
    }


def _errors(measurement: Measurement) -> Iterator[str]:
    for reason, number in measurement.refused.items():
        yield f"{number} refused ({reason})"
    for reason, number in measurement.failed.items():
        yield f"{number} failed ({reason})"
    if measurement.unsent:
        yield f"{measurement.unsent} not sent"


def _loads(concurrency: str | None, rate: str | None) -> list[Load]:
    if concurrency is None and rate is None:
        concurrency = "1,8,32"
    clients = _numbers("--concurrency", concurrency or "", MAX_CONCURRENCY)
    if any(number != int(number) for number in clients):
        raise typer.BadParameter("--concurrency expects whole numbers, such as 1,8,32")
    rates = _numbers("--rate", rate or "", MAX_RATE)
    return [*(Load(concurrency=int(number)) for number in clients), *(Load(rate=number) for number in rates)]


def _numbers(option: str, text: str, largest: float) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is not a list of numbers, such as 1,8,32") from None
    if not all(0 < number <= largest for number in numbers):
        raise typer.BadParameter(f"{option} {text!r} has a number outside 0 < N ≤ {largest:g}")
    return numbers


def _read(images: Sequence[str]) -> list[bytes]:
    from service.cli.image_reader import ImageReader
    from service.cli.inputs import image_files

    async def read() -> list[bytes]:
        async with ImageReader() as reader:
            return [await reader.read(image) for image in image_files(images)]

    encoded = asyncio.run(read())
    if sum(map(len, encoded)) > MAX_IMAGES_BYTES:
        raise typer.BadParameter("the images together have more than 1 GiB; name fewer of them")
    return encoded
