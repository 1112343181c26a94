"""What `convmlp watch` does with its frames: lines of JSON, drawings, a webhook, and the counts of all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from convmlp_client.aio import AsyncClient
from convmlp_client.drawing import Palette
from convmlp_client.errors import ClientError, ProtocolError
from convmlp_client.many import Outcome
from convmlp_client.results import Result
from model.errors import ConvMLPError
from model.types import Task
from service.cli.backends import NoAnswer, domain_error, palettes_of
from service.cli.console import counted, print_error, print_output
from service.cli.output import Palettes, drawn
from service.cli.sources.feed import Feed, TakenFrame
from service.cli.webhook import Webhook
from service.errors import (
    BadParameter,
    DeadlineExceeded,
    Forbidden,
    ModelNotFound,
    RetryLater,
    Unauthenticated,
)
from service.frontend.api.rest.schemas import encode_error
from service.frontend.core.overlay import PictureFormat
from service.frontend.http.problems import problem_of

FATAL = (ModelNotFound, BadParameter, Unauthenticated, Forbidden)
"""Every other frame would meet them as well."""
AWAY = (NoAnswer, RetryLater)
"""The frame is not at fault. A camera's is dropped, also where its deadline passed; a file waits."""
MAX_AWAY_S = 600.0
"""Without an answer for so long, the command gives up files that wait."""
STATUS_S = 10.0
"""Between two lines of status."""
MAX_LATENCIES = 1000
"""The latest ones, of which the summary has the median."""


class Watching:
    """Predicts the frames of `feed`. `save` is a folder for drawings."""

    def __init__(self, task: Task, feed: Feed, save: Path | None, webhook: Webhook | None) -> None:
        self._task = task
        self._feed = feed
        self._save = save
        self._webhook = webhook
        self._started_s = time.monotonic()
        self._answered_s = self._started_s
        """When the latest answer came."""
        self._latencies_s: deque[float] = deque(maxlen=MAX_LATENCIES)
        self._answered = self._refused = self._unanswered = 0
        """Frames with a result; with an error of their own; those that the service could not answer."""
        self._is_away = False
        feed.on_unreadable = self._print_problem

    async def run(self, client: AsyncClient, parameters: Mapping[str, Any], in_flight: int) -> None:
        """Until the source has ended or was stopped.

        Raises:
            ConvMLPError: the source is lost; the service refuses all frames, or is not this service; or it does not
                answer, and files wait for it.
        """
        methods: dict[Task, Callable[..., AsyncGenerator[Outcome[bytes, Any], None]]] = {
            Task.CLASSIFY: client.classify_many,
            Task.DETECT: client.detect_many,
            Task.SEGMENT: client.segment_many,
        }
        outcomes = methods[self._task](self._feed.pictures(), concurrency=in_flight, **parameters)
        palettes = Palettes(partial(palettes_of, client, has_local=False))
        status = asyncio.create_task(self._print_status())
        try:
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    await self._take(outcome, palettes)
        finally:
            status.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await status

    async def _take(self, outcome: Outcome[bytes, Result], palettes: Palettes) -> None:
        """Raises ConvMLPError: it is that of every frame."""
        error: ConvMLPError | None = None
        if outcome.error is not None:
            if not isinstance(outcome.error, ClientError):
                raise outcome.error
            error = domain_error(outcome.error, has_local=False)
            if isinstance(outcome.error, ProtocolError) or isinstance(error, FATAL):
                raise error
        is_away = isinstance(error, AWAY) or (isinstance(error, DeadlineExceeded) and not self._feed.keeps)
        taken = self._feed.settle(outcome.index, again=is_away)
        if is_away and error is not None:
            self._note_away(error)
            return
        self._note_answer()
        if error is not None:
            self._refused += 1
            await self._print_problem(taken, error)
            return
        result = outcome.result
        self._answered += 1
        self._latencies_s.append(time.monotonic() - taken.taken_s)
        fields = {"model": result.meta.model, "task": self._task.value, "result": result.to_dict()}
        await self._print(self._head(taken) | fields)
        if self._save is not None:
            await asyncio.to_thread(self._draw, taken, result, await palettes.of(result))

    async def _print_problem(self, taken: TakenFrame, error: ConvMLPError) -> None:
        problem = encode_error(problem_of(error, f"#{taken.number}"))
        await self._print(self._head(taken) | msgspec.json.decode(problem, type=dict[str, msgspec.Raw]))

    def _head(self, taken: TakenFrame) -> dict[str, object]:
        came = datetime.fromtimestamp(taken.frame.time_s, UTC)
        at = came.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {"frame": taken.number, "time": at, **taken.frame.fields, "dropped": taken.dropped}

    async def _print(self, line: Mapping[str, object]) -> None:
        encoded = msgspec.json.encode(line)
        await asyncio.to_thread(print_output, encoded)  # a reader may be slow
        if self._webhook is not None:
            self._webhook.post(encoded)

    def _draw(self, taken: TakenFrame, result: Result, palettes: Mapping[str, Palette | None]) -> None:
        assert self._save is not None
        came = datetime.fromtimestamp(taken.frame.time_s, UTC)
        name = taken.frame.fields.get("file")
        stem = came.strftime("%Y%m%dT%H%M%S.%f")[:-3] if name is None else Path(str(name)).stem
        target = self._save / f"{stem}-{taken.number:06d}.jpg"
        part = target.with_name(f".{target.name}.part")
        try:
            self._save.mkdir(parents=True, exist_ok=True)
            part.write_bytes(drawn(taken.image, result, PictureFormat.JPEG, palettes))
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise NoAnswer(f"{target}: cannot be written: {error.strerror}") from None

    def _note_away(self, error: ConvMLPError) -> None:
        if not self._feed.keeps:
            self._unanswered += 1
        if not self._is_away:
            self._is_away = True
            what = "files wait" if self._feed.keeps else "frames are dropped"
            print_error(f"{error.detail} ({what} until the service answers)")
        if self._feed.keeps and time.monotonic() - self._answered_s > MAX_AWAY_S:
            raise NoAnswer(f"the service has not answered for {MAX_AWAY_S / 60:g} minutes; the rest is left out")

    def _note_answer(self) -> None:
        self._answered_s = time.monotonic()
        if self._is_away:
            self._is_away = False
            print_error("the service answers again")

    async def _print_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_S)
            print_error(self._summary())

    def print_summary(self) -> None:
        print_error(self._summary())

    def _summary(self) -> str:
        feed, seconds = self._feed, time.monotonic() - self._started_s
        wanted = max(1, feed.seen - feed.skipped)
        lost = feed.dropped + self._unanswered
        parts = [
            f"{counted(feed.seen, 'frame')} in {seconds:.0f} s",
            f"{self._answered} answered ({self._answered / max(seconds, 1e-3):.1f}/s)",
            f"{lost} dropped ({lost / wanted:.0%})",
        ]
        if self._unanswered:
            parts.append(f"{self._unanswered} of these while the service did not answer")
        if feed.skipped:
            parts.append(f"{feed.skipped} beyond --fps")
        if self._refused or feed.unreadable:
            parts.append(f"{self._refused + feed.unreadable} with an error")
        if self._latencies_s:
            parts.append(f"median {1000 * sorted(self._latencies_s)[len(self._latencies_s) // 2]:.0f} ms")
        if self._webhook is not None:
            parts.append(f"{self._webhook.delivered} delivered, {self._webhook.undelivered} not")
        return ", ".join(parts)
