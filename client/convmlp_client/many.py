"""Predictions for many images: bounded concurrency, and a source that is read only as fast as outcomes are consumed."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sized,
)
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from convmlp_client.errors import ClientClosed
from convmlp_client.images import ImageInput
from convmlp_client.loop_thread import wait_result
from convmlp_client.results import AnyResult

I_co = TypeVar("I_co", bound=ImageInput, covariant=True)
R_co = TypeVar("R_co", bound=AnyResult, covariant=True)
I = TypeVar("I", bound=ImageInput)  # noqa: E741
R = TypeVar("R", bound=AnyResult)

READ_AHEAD = 2
"""At most READ_AHEAD times `concurrency` images are read and not yet yielded. So, with ordered outcomes, a slow image
does not stop the others: their results wait for it."""


@dataclass(frozen=True, slots=True)
class ManyOptions:
    """The options of `AsyncClient.classify_many`."""

    concurrency: int
    ordered: bool
    progress: bool
    raise_errors: bool
    timeout_s: float | None

    def __post_init__(self) -> None:
        """Raises ValueError for a concurrency below 1."""
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}, expected 1 or more")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[I_co, R_co]):
    """The result or the error of one image.

    index: position of the image in the source, from 0.
    image: the image as the source gave it.
    answer: the result; None if there is an error.
    error: a `ClientError`, or the Python error of reading the image; None if there is a result.
    """

    index: int
    image: I_co
    answer: R_co | None
    error: Exception | None = None

    @property
    def result(self) -> R_co:
        """The result. Raises `error` if there is none."""
        if self.answer is None:
            raise self.error or AssertionError("an outcome has a result or an error")
        return self.answer


async def map_async(
    images: Iterable[I] | AsyncIterable[I], predict: Callable[[I], Awaitable[R]], concurrency: int, *, ordered: bool
) -> AsyncGenerator[Outcome[I, R], None]:
    """The outcome of `predict` for each image. Closing the generator cancels running predictions and waits for them.

    Raises:
        ClientClosed: the client was closed.
        Exception: as the source raises it, after the outcomes of the images before.
    """
    running_slots, pending_slots = asyncio.Semaphore(concurrency), asyncio.Semaphore(READ_AHEAD * concurrency)
    next_tasks: asyncio.Queue[asyncio.Task[Outcome[I, R]] | None] = asyncio.Queue()
    running: set[asyncio.Task[Outcome[I, R]]] = set()
    started = yielded = 0

    async def outcome_of(index: int, image: I) -> Outcome[I, R]:
        try:
            return Outcome(index, image, await predict(image))
        except Exception as error:
            return Outcome(index, image, None, error)

    def on_done(task: asyncio.Task[Outcome[I, R]]) -> None:
        running.discard(task)
        running_slots.release()
        if not ordered:
            next_tasks.put_nowait(task)

    async def read_source() -> None:
        nonlocal started
        async with aclosing(_as_async(images)) as source:
            while True:
                await pending_slots.acquire()
                await running_slots.acquire()
                try:
                    image = await anext(source)
                except StopAsyncIteration:
                    return
                task = asyncio.create_task(outcome_of(started, image))
                started += 1
                running.add(task)
                task.add_done_callback(on_done)
                if ordered:
                    next_tasks.put_nowait(task)

    reader = asyncio.create_task(read_source())
    reader.add_done_callback(lambda _: next_tasks.put_nowait(None))  # wakes the loop below at the end of the source
    try:
        while not (reader.done() and yielded == started):
            task = await next_tasks.get()
            if task is not None:
                yielded += 1
                yield _raise_if_closed(await task)
                pending_slots.release()
        reader.result()
    finally:
        unfinished = [reader, *running]
        for one in unfinished:
            one.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)


def map_futures(
    images: Iterable[I], start: Callable[[I], Future[R]], concurrency: int, *, ordered: bool
) -> Generator[Outcome[I, R], None, None]:
    """As `map_async`, for callers outside of the event loop. The source is read in the thread of the consumer."""
    source = enumerate(images)
    exhausted = False
    pending: dict[Future[R], tuple[int, I]] = {}

    def next_done() -> Future[R] | None:
        candidates = islice(pending, 1) if ordered else pending
        return next((future for future in candidates if future.done()), None)

    try:
        while pending or not exhausted:
            running = [future for future in pending if not future.done()]
            if not exhausted and len(running) < concurrency and len(pending) < READ_AHEAD * concurrency:
                try:
                    index, image = next(source)
                except StopIteration:
                    exhausted = True
                else:
                    pending[start(image)] = index, image
            elif next_done() is None:
                concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            if (future := next_done()) is not None:
                yield _raise_if_closed(_outcome(future, *pending.pop(future)))
    finally:
        for future in pending:
            future.cancel()


@contextmanager
def progress_bar(shown: bool, images: object) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr; call the yielded function once per image. The total is shown if `images` has a length.

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


def _outcome(future: Future[R], index: int, image: I) -> Outcome[I, R]:
    try:
        return Outcome(index, image, wait_result(future))
    except Exception as error:
        return Outcome(index, image, None, error)


def _raise_if_closed(outcome: Outcome[I, R]) -> Outcome[I, R]:
    """Raises ClientClosed: a closed client ends the iteration, because the source may be endless."""
    if isinstance(outcome.error, ClientClosed):
        raise outcome.error
    return outcome


async def _as_async(images: Iterable[I] | AsyncIterable[I]) -> AsyncGenerator[I, None]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
