"""Many images with one question: so many at a time, their source read no faster than their answers are taken."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from convmlp_client.errors import ClientClosed
from convmlp_client.images import ImageInput
from convmlp_client.loop_thread import result_of
from convmlp_client.results import Result

I_co = TypeVar("I_co", bound=ImageInput, covariant=True)
R_co = TypeVar("R_co", bound=Result, covariant=True)
I = TypeVar("I", bound=ImageInput)  # noqa: E741
R = TypeVar("R", bound=Result)

AHEAD = 2
"""Where answers are given in the order of their images, a slow one does not stop the others: up to so many times the
concurrency are in hand then, those among them that are answered and wait for their turn."""


@dataclass(frozen=True, slots=True)
class Flow:
    """How many images are asked about. The fields are arguments of `AsyncClient.classify_many`."""

    concurrency: int
    ordered: bool
    progress: bool
    raise_errors: bool
    timeout_s: float | None

    def __post_init__(self) -> None:
        """Raises ValueError where nothing could flow."""
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}, expected 1 or more")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[I_co, R_co]):
    """What became of one image: `image` as the source gave it, `index` its place there, from 0 on.

    `error` is a `ClientError`, or a Python error of reading the image; None where there is an answer.
    """

    index: int
    image: I_co
    answer: R_co | None
    error: Exception | None = None

    @property
    def result(self) -> R_co:
        """The answer. Raises the error where there is none."""
        if self.answer is None:
            raise self.error or AssertionError("an outcome is an answer or an error")
        return self.answer


async def each_awaited(
    images: Iterable[I] | AsyncIterable[I], put: Callable[[I], Awaitable[R]], concurrency: int, *, ordered: bool
) -> AsyncGenerator[Outcome[I, R], None]:
    """The outcome of `put` for each image. Closing the generator cancels what is in hand, and waits until it has ended.

    Raises:
        ClientClosed: the client was closed.
        Exception: what the source itself raises, after the outcomes of the images before.
    """
    at_work, in_hand = asyncio.Semaphore(concurrency), asyncio.Semaphore(AHEAD * concurrency)
    line: asyncio.Queue[asyncio.Task[Outcome[I, R]] | None] = asyncio.Queue()
    running: set[asyncio.Task[Outcome[I, R]]] = set()
    started = taken = 0

    async def outcome_of(index: int, image: I) -> Outcome[I, R]:
        try:
            return Outcome(index, image, await put(image))
        except Exception as error:
            return Outcome(index, image, None, error)

    def finished(task: asyncio.Task[Outcome[I, R]]) -> None:
        running.discard(task)
        at_work.release()
        if not ordered:
            line.put_nowait(task)

    async def read() -> None:
        nonlocal started
        async with aclosing(_asynchronous(images)) as source:
            while True:
                await in_hand.acquire()
                await at_work.acquire()
                try:
                    image = await anext(source)
                except StopAsyncIteration:
                    return
                task = asyncio.create_task(outcome_of(started, image))
                started += 1
                running.add(task)
                task.add_done_callback(finished)
                if ordered:
                    line.put_nowait(task)

    reading = asyncio.create_task(read())
    reading.add_done_callback(lambda _: line.put_nowait(None))  # so that the end of the source is noticed
    try:
        while not (reading.done() and taken == started):
            task = await line.get()
            if task is not None:
                taken += 1
                yield _unless_closed(await task)
                in_hand.release()
        reading.result()
    finally:
        in_flight = [reading, *running]
        for one in in_flight:
            one.cancel()
        await asyncio.gather(*in_flight, return_exceptions=True)


def each_waited(
    images: Iterable[I], start: Callable[[I], Future[R]], concurrency: int, *, ordered: bool
) -> Generator[Outcome[I, R], None, None]:
    """As `each_awaited`, from outside of the event loop: the source is read in the thread that takes the outcomes."""
    source = enumerate(images)
    more = True
    in_hand: dict[Future[R], tuple[int, I]] = {}

    def due() -> Future[R] | None:
        candidates = islice(in_hand, 1) if ordered else in_hand
        return next((future for future in candidates if future.done()), None)

    try:
        while more or in_hand:
            at_work = [future for future in in_hand if not future.done()]
            if more and len(at_work) < concurrency and len(in_hand) < AHEAD * concurrency:
                try:
                    index, image = next(source)
                except StopIteration:
                    more = False
                else:
                    in_hand[start(image)] = index, image
            elif due() is None:
                concurrent.futures.wait(at_work, return_when=concurrent.futures.FIRST_COMPLETED)
            if (future := due()) is not None:
                yield _unless_closed(_outcome(future, *in_hand.pop(future)))
    finally:
        for future in in_hand:
            future.cancel()


def _outcome(future: Future[R], index: int, image: I) -> Outcome[I, R]:
    try:
        return Outcome(index, image, result_of(future))
    except Exception as error:
        return Outcome(index, image, None, error)


def _unless_closed(outcome: Outcome[I, R]) -> Outcome[I, R]:
    """Raises ClientClosed: that is no matter of one image, and a source may be endless."""
    if isinstance(outcome.error, ClientClosed):
        raise outcome.error
    return outcome


async def _asynchronous(images: Iterable[I] | AsyncIterable[I]) -> AsyncGenerator[I, None]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


@contextmanager
def progress_bar(shown: bool, images: object) -> Iterator[Callable[[], None]]:
    """A bar on stderr, of as many steps as there are images, where that is known. Call what it gives once a step.

    Raises:
        ImportError: rich is not installed.
    """
    if not shown:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ModuleNotFoundError as error:
        raise ImportError(
            f"progress=True needs {error.name}, which is not installed: pip install 'convmlp-client[progress]'"
        ) from error
    total = len(images) if isinstance(images, Sized) else None
    columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("images", total=total)
        yield lambda: progress.advance(task)
