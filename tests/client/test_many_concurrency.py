"""The iteration over many images: how far the source is read, the order of outcomes, and early stops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import aclosing, closing
from dataclasses import dataclass, field

import pytest

from convmlp_client.errors import BadImage, ClientClosed
from convmlp_client.geometry import ImageSize
from convmlp_client.many import READ_AHEAD, Outcome, map_async, map_futures
from convmlp_client.results import Classification, Meta, Task

Outcomes = Generator[Outcome[bytes, Classification], None, None]
CONCURRENCY = 4


def result(image: bytes) -> Classification:
    return Classification(ImageSize(1, 1), (), Meta(image.decode(), Task.CLASSIFY))


def images(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def models(outcomes: Iterable[Outcome[bytes, Classification]]) -> list[str]:
    return [outcome.result.meta.model for outcome in outcomes]


@dataclass
class Source:
    """An endless source that counts how far it was read."""

    read: int = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.read += 1
            yield str(self.read - 1).encode()


@dataclass
class Service:
    """Predicts each image at once, or when `finish` is called for it."""

    immediate: bool = True
    finished: dict[str, asyncio.Event] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    most_running: int = 0
    cancelled: list[str] = field(default_factory=list)

    async def predict(self, image: bytes) -> Classification:
        name = image.decode()
        event = self.finished.setdefault(name, asyncio.Event())
        self.running.add(name)
        self.most_running = max(self.most_running, len(self.running))
        try:
            if self.immediate:
                await asyncio.sleep(0)
            else:
                await event.wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        finally:
            self.running.discard(name)
        if image.startswith(b"bad"):
            raise BadImage(f"{name} is bad")
        return result(image)

    def finish(self, *numbers: int) -> None:
        """Answer images, also those that have not arrived yet."""
        for number in numbers:
            self.finished.setdefault(str(number), asyncio.Event()).set()


async def settle() -> None:
    """Run the event loop until nothing more happens."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("ordered", [True, False])
async def test_each_image_has_its_outcome(ordered: bool) -> None:
    """There is one outcome per image, with its index and image, and never more predictions run than `concurrency`."""
    service = Service()
    outcomes = [one async for one in map_async(images(50), service.predict, CONCURRENCY, ordered=ordered)]
    assert sorted(one.index for one in outcomes) == [*range(50)]
    assert all(one.result.meta.model == one.image.decode() == str(one.index) for one in outcomes)
    assert service.most_running == CONCURRENCY


async def test_an_empty_source_has_no_outcomes() -> None:
    """An empty source gives no outcomes."""
    nothing: list[bytes] = []
    assert [one async for one in map_async(nothing, Service().predict, CONCURRENCY, ordered=True)] == []


async def test_ordered_outcomes() -> None:
    """With `ordered`, outcomes are in the order of the images, whatever the order of the results."""
    service = Service(immediate=False)
    async with aclosing(map_async(images(4), service.predict, CONCURRENCY, ordered=True)) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await settle()
        service.finish(3, 2, 1)
        await settle()
        assert not first.done()
        service.finish(0)
        assert models([await first, *[one async for one in outcomes]]) == ["0", "1", "2", "3"]


async def test_unordered_outcomes() -> None:
    """Without `ordered`, a slow image does not delay other outcomes."""
    service = Service(immediate=False)
    async with aclosing(map_async(images(4), service.predict, CONCURRENCY, ordered=False)) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await settle()
        service.finish(3)
        assert models([await first]) == ["3"]
        service.finish(1)
        assert models([await anext(outcomes)]) == ["1"]
        service.finish(0, 2)
        assert models([one async for one in outcomes]) == ["0", "2"]


@pytest.mark.parametrize("ordered", [True, False])
async def test_the_source_is_read_as_outcomes_are_consumed(ordered: bool) -> None:
    """An endless source is read only a bounded number of images ahead of the consumer."""
    source = Source()
    async with aclosing(map_async(source, Service().predict, CONCURRENCY, ordered=ordered)) as outcomes:
        for taken in range(1, 20):
            await anext(outcomes)
            await settle()
            assert source.read <= taken + READ_AHEAD * CONCURRENCY


async def test_a_slow_image_does_not_stop_the_others() -> None:
    """While the first image is slow, the next are predicted and wait for it, up to a bound."""
    service, source = Service(immediate=False), Source()
    async with aclosing(map_async(source, service.predict, CONCURRENCY, ordered=True)) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await settle()
        assert source.read == CONCURRENCY
        for number in range(1, READ_AHEAD * CONCURRENCY):
            service.finish(number)
            await settle()
        assert source.read == READ_AHEAD * CONCURRENCY
        assert service.running == {"0"}
        service.finish(0)
        await first


async def test_a_bad_image_is_an_outcome() -> None:
    """The error of an image is in its outcome, and the iteration continues."""
    outcomes = [one async for one in map_async([b"a", b"bad", b"c"], Service().predict, CONCURRENCY, ordered=True)]
    assert [type(one.error) for one in outcomes] == [type(None), BadImage, type(None)]
    assert outcomes[1].answer is None
    with pytest.raises(BadImage, match="bad is bad"):
        _ = outcomes[1].result


async def test_closing_cancels_running_predictions() -> None:
    """Closing the generator cancels the running predictions and stops reading the source."""
    service, source = Service(immediate=False), Source()
    outcomes = map_async(source, service.predict, CONCURRENCY, ordered=True)
    first = asyncio.ensure_future(anext(outcomes))
    await settle()
    service.finish(0)
    await first
    await settle()
    running = set(service.running)
    assert len(running) == CONCURRENCY
    read = source.read
    await outcomes.aclose()
    assert set(service.cancelled) == running
    assert service.running == set()
    await settle()
    assert source.read == read


async def test_leaving_the_loop_cancels_running_predictions() -> None:
    """After a `break` without `aclosing`, running predictions are cancelled too."""
    service = Service(immediate=False)
    service.finish(0)
    async for _ in map_async(Source(), service.predict, CONCURRENCY, ordered=True):
        break
    await settle()
    assert service.running == set()
    assert len(service.cancelled) >= CONCURRENCY - 1


async def test_an_error_of_the_source_follows_its_images() -> None:
    """An error of the source is raised after the outcomes of the images before."""

    def source() -> Iterator[bytes]:
        yield from images(3)
        raise LookupError("no more")

    outcomes = map_async(source(), Service().predict, CONCURRENCY, ordered=False)
    assert sorted(models([await anext(outcomes) for _ in range(3)])) == ["0", "1", "2"]
    with pytest.raises(LookupError, match="no more"):
        await anext(outcomes)


async def test_a_waiting_source_does_not_delay_outcomes() -> None:
    """Outcomes are yielded while an asynchronous source waits. Closing the generator closes the source."""
    ended = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            yield b"0"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with aclosing(map_async(source(), Service().predict, CONCURRENCY, ordered=True)) as outcomes:
        assert models([await anext(outcomes)]) == ["0"]
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_closed_client_ends_the_iteration() -> None:
    """ClientClosed is raised instead of becoming the outcome of one image."""

    async def predict(image: bytes) -> Classification:
        if image == b"2":
            raise ClientClosed("closed")
        return result(image)

    outcomes = map_async(Source(), predict, CONCURRENCY, ordered=True)
    assert models([await anext(outcomes), await anext(outcomes)]) == ["0", "1"]
    with pytest.raises(ClientClosed):
        await anext(outcomes)


class Futures:
    """Futures that the test completes."""

    def __init__(self) -> None:
        self.started: dict[str, Future[Classification]] = {}

    def start(self, image: bytes) -> Future[Classification]:
        future: Future[Classification] = Future()
        self.started[image.decode()] = future
        return future

    def finish(self, *numbers: int) -> None:
        for number in numbers:
            self.started[str(number)].set_result(result(str(number).encode()))

    def finish_later(self, *numbers: int) -> None:
        """Complete the images once all of them were started."""

        def wait() -> None:
            while not all(str(number) in self.started for number in numbers):
                threading.Event().wait(0.001)
            self.finish(*numbers)

        threading.Thread(target=wait).start()


def outcomes_of(
    images: Iterable[bytes], loop: Futures, *, ordered: bool
) -> Generator[Outcome[bytes, Classification], None, None]:
    return map_futures(images, loop.start, CONCURRENCY, ordered=ordered)


@pytest.mark.parametrize("ordered", [True, False])
def test_each_image_has_its_outcome_in_a_thread(ordered: bool) -> None:
    """There is one outcome per image, with its index and image."""

    def immediate(image: bytes) -> Future[Classification]:
        future: Future[Classification] = Future()
        future.set_result(result(image))
        return future

    outcomes = list(map_futures(images(50), immediate, CONCURRENCY, ordered=ordered))
    assert sorted(one.index for one in outcomes) == [*range(50)]
    assert all(one.result.meta.model == one.image.decode() == str(one.index) for one in outcomes)


@pytest.mark.parametrize(("ordered", "expected"), [(True, ["0", "1", "2", "3"]), (False, ["2", "0", "1", "3"])])
def test_order_of_outcomes_in_a_thread(ordered: bool, expected: list[str]) -> None:
    """Outcomes are in the order of the images with `ordered`, and in the order of the results without."""
    loop = Futures()
    with closing(outcomes_of(images(4), loop, ordered=ordered)) as outcomes:
        loop.finish_later(int(expected[0]))
        first = next(outcomes)
        loop.finish(*({0, 1, 2, 3} - {first.index}))
        assert models([first, *outcomes]) == expected


@pytest.mark.parametrize("ordered", [True, False])
def test_the_source_is_read_in_the_thread_of_the_consumer(ordered: bool) -> None:
    """The source is read in the consumer's thread, and only a bounded number of images ahead."""
    loop, source, readers = Futures(), Source(), set()

    def read() -> Iterator[bytes]:
        for image in source:
            readers.add(threading.get_ident())
            yield image

    with closing(outcomes_of(read(), loop, ordered=ordered)) as outcomes:
        for taken in range(20):
            loop.finish_later(taken)
            assert next(outcomes).index == taken
            assert source.read <= taken + 1 + CONCURRENCY
    assert readers == {threading.get_ident()}


def test_a_slow_image_does_not_stop_the_others_in_a_thread() -> None:
    """While the first image is slow, the next are predicted and wait for it, up to a bound."""
    loop, source = Futures(), Source()
    with closing(outcomes_of(source, loop, ordered=True)) as outcomes:
        bound = READ_AHEAD * CONCURRENCY
        for number in range(1, bound):
            loop.finish_later(number)

        def release() -> None:
            while sum(future.done() for future in list(loop.started.values())) < bound - 1:
                threading.Event().wait(0.001)
            loop.finish(0)

        threading.Thread(target=release).start()
        assert next(outcomes).index == 0
        assert source.read == bound


def test_leaving_the_loop_cancels_futures() -> None:
    """A `break` cancels all predictions that have not finished."""
    loop = Futures()
    loop.finish_later(0)
    for _ in outcomes_of(Source(), loop, ordered=True):
        break
    assert [name for name, future in loop.started.items() if not future.cancelled()] == ["0"]
    assert len(loop.started) > 1


def failing(error: BaseException | None) -> Callable[[bytes], Future[Classification]]:
    """Image "1" fails with the error, or is cancelled if that is None; the others have results at once."""

    def start(image: bytes) -> Future[Classification]:
        future: Future[Classification] = Future()
        if image != b"1":
            future.set_result(result(image))
        elif error is not None:
            future.set_exception(error)
        else:
            future.cancel()
        return future

    return start


def test_a_bad_image_is_an_outcome_in_a_thread() -> None:
    """The error of an image is in its outcome, and the iteration continues."""
    outcomes = list(map_futures(images(3), failing(BadImage("bad")), CONCURRENCY, ordered=True))
    assert [type(one.error) for one in outcomes] == [type(None), BadImage, type(None)]


@pytest.mark.parametrize("error", [ClientClosed("closed"), None])
def test_a_closed_client_ends_the_iteration_in_a_thread(error: ClientClosed | None) -> None:
    """ClientClosed is raised, whether a future has that error or was cancelled."""
    outcomes = map_futures(images(3), failing(error), CONCURRENCY, ordered=True)
    assert next(outcomes).index == 0
    with pytest.raises(ClientClosed):
        next(outcomes)


def test_an_error_of_the_source_ends_the_iteration_in_a_thread() -> None:
    """An error of the source is raised, and running predictions are cancelled."""
    loop = Futures()

    def source() -> Iterator[bytes]:
        yield from images(3)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(outcomes_of(source(), loop, ordered=True))
    assert all(future.cancelled() for future in loop.started.values())
