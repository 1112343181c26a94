"""`convmlp bench`: how much a running service can do, and how long its callers wait."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from model.errors import ConvMLPError
from model.reference import REFERENCE_PICTURE
from model.types import Task
from service.cli.predict import DEFAULT_URL, ApiKey, Model, Url
from service.cli.words import complain

if TYPE_CHECKING:
    from service.cli.load.outcome import Ask, Tally

MAX_CONCURRENCY = 1024
MAX_RATE = 100_000.0
MAX_SECONDS = 3600.0
MAX_PICTURES_BYTES = 2**30
PERCENTS = (50, 90, 95, 99)

Images = Annotated[
    list[str] | None, typer.Argument(metavar="IMAGE", help="Picture files, sent in turn; default: a built-in one.")
]
Concurrency = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,…", help="Closed loop: so many clients, each asking again once answered; default: 1,8,32."
    ),
]
Rate = Annotated[
    str | None, typer.Option(metavar="R,R,…", help="Open loop: so many requests a second, at random (Poisson).")
]
Seconds = Annotated[float, typer.Option(min=0.1, max=MAX_SECONDS, help="Of each measurement.")]
WarmUp = Annotated[float, typer.Option(min=0.0, max=MAX_SECONDS, help="Seconds of load before each of them.")]
TimeoutMs = Annotated[int, typer.Option(min=1, max=600_000, help="The deadline of each request.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement: a closed loop of `concurrency` clients, or an open loop of `rate` requests a second."""

    concurrency: int | None = None
    rate: float | None = None

    @property
    def name(self) -> str:
        return f"{self.concurrency} clients" if self.rate is None else f"{self.rate:g}/s"

    async def run(self, ask: Ask, seconds: float, warm_up_s: float) -> Tally:
        from service.cli.load.loops import closed_loop, open_loop

        if self.rate is not None:
            return await open_loop(ask, self.rate, seconds, warm_up_s)
        assert self.concurrency is not None
        return await closed_loop(ask, self.concurrency, seconds, warm_up_s)


def bench(
    images: Images = None,
    task: Annotated[Task, typer.Option(help="What is asked.")] = Task.CLASSIFY,
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
    """Load a running service and say what it did: answers a second, latencies, refusals, errors.

    Load tests are for services of your own.
    """
    import uvloop

    steps = _steps(concurrency, rate)
    try:
        pictures = _read(images or [str(REFERENCE_PICTURE)])
    except ConvMLPError as error:
        complain(error.detail)
        raise typer.Exit(1) from None
    told = _Telling(url, task, len(pictures), as_json)
    try:
        complete = uvloop.run(_bench(told, pictures, model, steps, seconds, warm_up, api_key, timeout_ms / 1000))
    except ValueError as error:
        raise typer.BadParameter(f"--url or --api-key: {error}") from None
    if not complete:
        raise typer.Exit(1)


async def _bench(
    told: _Telling,
    pictures: Sequence[bytes],
    model: str | None,
    steps: Sequence[Step],
    seconds: float,
    warm_up_s: float,
    api_key: str | None,
    timeout_s: float,
) -> bool:
    """Whether every measurement had an answer."""
    from service.cli.load.outcome import Ending
    from service.cli.load.service import open_ask

    async with open_ask(told.url, told.task, pictures, model=model, timeout_s=timeout_s, api_key=api_key) as ask:
        # What would be wrong with every request is met once, before any load.
        first = await ask(0)
        if first.ending is Ending.FAILED:
            complain(f"{told.url} gives no answer: {first.kind}")
            return False
        tallies = []
        for step in steps:
            tallies.append(await step.run(ask, seconds, warm_up_s))
            told.progress(step, tallies[-1])
        told.end(steps, tallies)
        return all(tally.latencies_s for tally in tallies)


@dataclass(frozen=True, slots=True)
class _Telling:
    url: str
    task: Task
    pictures: int
    as_json: bool

    def progress(self, step: Step, tally: Tally) -> None:
        typer.echo(f"{step.name}: {tally.per_second:.1f} answers/s", err=True)

    def end(self, steps: Sequence[Step], tallies: Sequence[Tally]) -> None:
        if self.as_json:
            measured = [_figures(step, tally) for step, tally in zip(steps, tallies, strict=True)]
            document = {"url": self.url, "task": self.task, "pictures": self.pictures, "measured": measured}
            typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))
        else:
            self._print_table(steps, tallies)

    def _print_table(self, steps: Sequence[Step], tallies: Sequence[Tally]) -> None:
        from service.cli.table import left, print_rows, right

        columns = [left("load"), right("requests"), right("answers/s"), right("mean ms")]
        columns += [right(f"p{percent} ms") for percent in PERCENTS]
        columns += [left("not answered")]
        rows = []
        for step, tally in zip(steps, tallies, strict=True):
            latencies = [f"{value:.1f}" for value in (tally.mean_ms, *tally.percentiles_ms(*PERCENTS))]
            troubles = ", ".join(_troubles(tally)) or "-"
            rows.append([step.name, str(tally.requests), f"{tally.per_second:.1f}", *latencies, troubles])
        print_rows(columns, rows, title=f"{self.task} at {self.url} pictures: {self.pictures}")


def _figures(step: Step, tally: Tally) -> dict[str, Any]:
    load = (
        {"loop": "closed", "concurrency": step.concurrency}
        if step.rate is None
        else {"loop": "open", "rate": step.rate}
    )
    named = zip(PERCENTS, tally.percentiles_ms(*PERCENTS), strict=True)
    latency = {"mean": tally.mean_ms, **{f"p{percent}": value for percent, value in named}}
    return {
        **load,
        "seconds": tally.seconds,
        "requests": tally.requests,
        "answers_per_second": tally.per_second,
        "latency_ms": {name: None if math.isnan(value) else value for name, value in latency.items()},
        "refused": dict(tally.refused),
        "failed": dict(tally.failed),
        "unsent": tally.unsent,
    }


def _troubles(tally: Tally) -> Iterator[str]:
    for kind, times in tally.refused.items():
        yield f"{times} refused ({kind})"
    for kind, times in tally.failed.items():
        yield f"{times} failed ({kind})"
    if tally.unsent:
        yield f"{tally.unsent} not sent"


def _steps(concurrency: str | None, rate: str | None) -> list[Step]:
    if concurrency is None and rate is None:
        concurrency = "1,8,32"
    clients = _numbers("--concurrency", concurrency or "", MAX_CONCURRENCY)
    if any(number != int(number) for number in clients):
        raise typer.BadParameter("--concurrency is in whole clients, as in 1,8,32")
    rates = _numbers("--rate", rate or "", MAX_RATE)
    return [*(Step(concurrency=int(number)) for number in clients), *(Step(rate=number) for number in rates)]


def _numbers(option: str, text: str, largest: float) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r} is not numbers with commas between") from None
    if not all(0 < number <= largest for number in numbers):
        raise typer.BadParameter(f"{option} {text!r} has a number that is not above 0 and at most {largest:g}")
    return numbers


def _read(images: Sequence[str]) -> list[bytes]:
    from service.cli.pictures import Picture

    pictures = [Picture(name).read() for name in images]
    if sum(map(len, pictures)) > MAX_PICTURES_BYTES:
        raise typer.BadParameter("the pictures together have more than 1 GiB; name fewer of them")
    return pictures
