"""Many images: how far the source is read, in which order outcomes come, and what is left when one stops early."""

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
from convmlp_client.many import AHEAD, Outcome, each_awaited, each_waited
from convmlp_client.results import Classification, Meta, Task

Outcomes = Generator[Outcome[bytes, Classification], None, None]
CONCURRENCY = 4


def answer(image: bytes) -> Classification:
    return Classification(ImageSize(1, 1), (), Meta(image.decode(), Task.CLASSIFY))


def images(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def told(outcomes: Iterable[Outcome[bytes, Classification]]) -> list[str]:
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
    """Answers an image when it is told to, or at once."""

    at_once: bool = True
    asked: dict[str, asyncio.Event] = field(default_factory=dict)
    at_work: set[str] = field(default_factory=set)
    most_at_work: int = 0
    cancelled: list[str] = field(default_factory=list)

    async def put(self, image: bytes) -> Classification:
        name = image.decode()
        event = self.asked.setdefault(name, asyncio.Event())
        self.at_work.add(name)
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        try:
            if self.at_once:
                await asyncio.sleep(0)
            else:
                await event.wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        finally:
            self.at_work.discard(name)
        if image.startswith(b"bad"):
            raise BadImage(f"{name} is bad")
        return answer(image)

    def finish(self, *numbers: int) -> None:
        for number in numbers:
            self.asked[str(number)].set()


async def settled() -> None:
    """Let everything that can happen now happen."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("ordered", [True, False])
async def test_each_image_has_its_outcome(ordered: bool) -> None:
    """As many outcomes as images, each with its place and its image, and never more at work than were allowed."""
    service = Service()
    outcomes = [one async for one in each_awaited(images(50), service.put, CONCURRENCY, ordered=ordered)]
    assert sorted(one.index for one in outcomes) == [*range(50)]
    assert all(one.result.meta.model == one.image.decode() == str(one.index) for one in outcomes)
    assert service.most_at_work == CONCURRENCY


async def test_no_images_no_outcomes() -> None:
    """An empty source is no special case."""
    nothing: list[bytes] = []
    assert [one async for one in each_awaited(nothing, Service().put, CONCURRENCY, ordered=True)] == []


async def test_outcomes_come_in_the_order_of_their_images() -> None:
    """Though the answers come in another."""
    service = Service(at_once=False)
    async with aclosing(each_awaited(images(4), service.put, CONCURRENCY, ordered=True)) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await settled()
        service.finish(3, 2, 1)
        await settled()
        assert not first.done()
        service.finish(0)
        assert told([await first, *[one async for one in outcomes]]) == ["0", "1", "2", "3"]


async def test_outcomes_come_as_they_are_there() -> None:
    """Where no order is asked for a slow image holds up nobody."""
    service = Service(at_once=False)
    async with aclosing(each_awaited(images(4), service.put, CONCURRENCY, ordered=False)) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await settled()
        service.finish(3)
        assert told([await first]) == ["3"]
        service.finish(1)
        assert told([await anext(outcomes)]) == ["1"]
        service.finish(0, 2)
        assert told([one async for one in outcomes]) == ["0", "2"]


@pytest.mark.parametrize("ordered", [True, False])
async def test_the_source_is_read_only_as_fast_as_outcomes_are_taken(ordered: bool) -> None:
    """An endless source is read a bounded number of images ahead, whatever the service could do."""
    source = Source()
    async with aclosing(each_awaited(source, Service().put, CONCURRENCY, ordered=ordered)) as outcomes:
        for taken in range(1, 20):
            await anext(outcomes)
            await settled()
            assert source.read <= taken + AHEAD * CONCURRENCY


async def test_a_slow_image_does_not_stop_the_others() -> None:
    """While the first is slow the next are asked about and wait for their turn, up to a bound."""
    service, source = Service(at_once=False), Source()
    async with aclosing(each_awaited(source, service.put, CONCURRENCY, ordered=True)) as outcomes:
        first = asyncio.ensure_future(anext(outcomes))
        await settled()
        assert source.read == CONCURRENCY
        for number in range(1, AHEAD * CONCURRENCY):
            service.finish(number)
            await settled()
        assert source.read == AHEAD * CONCURRENCY
        assert service.at_work == {"0"}
        service.finish(0)
        await first


async def test_a_bad_image_is_an_outcome() -> None:
    """The stream goes on after it."""
    outcomes = [one async for one in each_awaited([b"a", b"bad", b"c"], Service().put, CONCURRENCY, ordered=True)]
    assert [type(one.error) for one in outcomes] == [type(None), BadImage, type(None)]
    assert outcomes[1].answer is None
    with pytest.raises(BadImage, match="bad is bad"):
        _ = outcomes[1].result


async def test_stopping_early_cancels_what_is_in_hand() -> None:
    """Nothing that was begun goes on."""
    service, source = Service(at_once=False), Source()
    outcomes = each_awaited(source, service.put, CONCURRENCY, ordered=True)
    first = asyncio.ensure_future(anext(outcomes))
    await settled()
    service.finish(0)
    await first
    await settled()
    in_hand = set(service.at_work)
    assert len(in_hand) == CONCURRENCY
    read = source.read
    await outcomes.aclose()
    assert set(service.cancelled) == in_hand
    assert service.at_work == set()
    await settled()
    assert source.read == read


async def test_leaving_the_loop_is_enough() -> None:
    """Without `aclosing` too, what is in hand is cancelled soon after a `break`."""
    service = Service(at_once=False)
    asyncio.get_running_loop().call_later(0.05, lambda: service.finish(0))
    async for _ in each_awaited(Source(), service.put, CONCURRENCY, ordered=True):
        break
    await settled()
    assert service.at_work == set()
    assert len(service.cancelled) >= CONCURRENCY - 1


async def test_what_the_source_raises_comes_after_its_images() -> None:
    """The outcomes of the images before it are not lost."""

    def source() -> Iterator[bytes]:
        yield from images(3)
        raise LookupError("no more")

    outcomes = each_awaited(source(), Service().put, CONCURRENCY, ordered=False)
    assert sorted(told([await anext(outcomes) for _ in range(3)])) == ["0", "1", "2"]
    with pytest.raises(LookupError, match="no more"):
        await anext(outcomes)


async def test_an_asynchronous_source_holds_nothing_up() -> None:
    """While it has nothing new, what is answered is given out; closing the stream ends it where it waits."""
    ended = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        try:
            yield b"0"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with aclosing(each_awaited(source(), Service().put, CONCURRENCY, ordered=True)) as outcomes:
        assert told([await anext(outcomes)]) == ["0"]
        assert not ended.is_set()
    assert ended.is_set()


async def test_a_closed_client_ends_the_stream() -> None:
    """It is no matter of one image."""

    async def put(image: bytes) -> Classification:
        if image == b"2":
            raise ClientClosed("closed")
        return answer(image)

    outcomes = each_awaited(Source(), put, CONCURRENCY, ordered=True)
    assert told([await anext(outcomes), await anext(outcomes)]) == ["0", "1"]
    with pytest.raises(ClientClosed):
        await anext(outcomes)


class Loop:
    """An event loop's side of `each_waited`: futures that the test completes."""

    def __init__(self) -> None:
        self.started: dict[str, Future[Classification]] = {}

    def start(self, image: bytes) -> Future[Classification]:
        future: Future[Classification] = Future()
        self.started[image.decode()] = future
        return future

    def finish(self, *numbers: int) -> None:
        for number in numbers:
            self.started[str(number)].set_result(answer(str(number).encode()))

    def finish_later(self, *numbers: int) -> None:
        """Once the images were put."""

        def wait() -> None:
            while not all(str(number) in self.started for number in numbers):
                threading.Event().wait(0.001)
            self.finish(*numbers)

        threading.Thread(target=wait).start()


def waited(
    images: Iterable[bytes], loop: Loop, *, ordered: bool
) -> Generator[Outcome[bytes, Classification], None, None]:
    return each_waited(images, loop.start, CONCURRENCY, ordered=ordered)


@pytest.mark.parametrize("ordered", [True, False])
def test_each_image_has_its_outcome_in_a_thread_as_well(ordered: bool) -> None:
    """As many outcomes as images, each with its place and its image."""

    def at_once(image: bytes) -> Future[Classification]:
        future: Future[Classification] = Future()
        future.set_result(answer(image))
        return future

    outcomes = list(each_waited(images(50), at_once, CONCURRENCY, ordered=ordered))
    assert sorted(one.index for one in outcomes) == [*range(50)]
    assert all(one.result.meta.model == one.image.decode() == str(one.index) for one in outcomes)


@pytest.mark.parametrize(("ordered", "expected"), [(True, ["0", "1", "2", "3"]), (False, ["2", "0", "1", "3"])])
def test_outcomes_come_in_the_order_that_is_asked_for(ordered: bool, expected: list[str]) -> None:
    """In that of the images, or as they are there."""
    loop = Loop()
    with closing(waited(images(4), loop, ordered=ordered)) as outcomes:
        loop.finish_later(int(expected[0]))
        first = next(outcomes)
        loop.finish(*({0, 1, 2, 3} - {first.index}))
        assert told([first, *outcomes]) == expected


@pytest.mark.parametrize("ordered", [True, False])
def test_the_source_is_read_in_the_thread_that_takes_outcomes(ordered: bool) -> None:
    """And only as far as outcomes are taken: a bounded number of images ahead, whatever the service could do."""
    loop, source, readers = Loop(), Source(), set()

    def read() -> Iterator[bytes]:
        for image in source:
            readers.add(threading.get_ident())
            yield image

    with closing(waited(read(), loop, ordered=ordered)) as outcomes:
        for taken in range(20):
            loop.finish_later(taken)
            assert next(outcomes).index == taken
            assert source.read <= taken + 1 + CONCURRENCY
    assert readers == {threading.get_ident()}


def test_a_slow_image_does_not_stop_the_others_in_a_thread() -> None:
    """While the first is slow the next are asked about and wait for their turn, up to a bound."""
    loop, source = Loop(), Source()
    with closing(waited(source, loop, ordered=True)) as outcomes:
        bound = AHEAD * CONCURRENCY
        for number in range(1, bound):
            loop.finish_later(number)

        def release() -> None:
            while sum(future.done() for future in list(loop.started.values())) < bound - 1:
                threading.Event().wait(0.001)
            loop.finish(0)

        threading.Thread(target=release).start()
        assert next(outcomes).index == 0
        assert source.read == bound


def test_stopping_early_cancels_what_was_started() -> None:
    """A `break` is enough: nothing that was begun is waited for."""
    loop = Loop()
    loop.finish_later(0)
    for _ in waited(Source(), loop, ordered=True):
        break
    assert [name for name, future in loop.started.items() if not future.cancelled()] == ["0"]
    assert len(loop.started) > 1


def failing(error: BaseException | None) -> Callable[[bytes], Future[Classification]]:
    """Image "1" fails with the error, or is cancelled where there is none; the others are answered at once."""

    def start(image: bytes) -> Future[Classification]:
        future: Future[Classification] = Future()
        if image != b"1":
            future.set_result(answer(image))
        elif error is not None:
            future.set_exception(error)
        else:
            future.cancel()
        return future

    return start


def test_a_bad_image_is_an_outcome_in_a_thread() -> None:
    """The stream goes on after it."""
    outcomes = list(each_waited(images(3), failing(BadImage("bad")), CONCURRENCY, ordered=True))
    assert [type(one.error) for one in outcomes] == [type(None), BadImage, type(None)]


@pytest.mark.parametrize("error", [ClientClosed("closed"), None])
def test_a_closed_client_ends_the_stream_in_a_thread(error: ClientClosed | None) -> None:
    """It is no matter of one image, whether it was told in words or by cancelling what was in hand."""
    outcomes = each_waited(images(3), failing(error), CONCURRENCY, ordered=True)
    assert next(outcomes).index == 0
    with pytest.raises(ClientClosed):
        next(outcomes)


def test_what_the_source_raises_ends_the_stream_in_a_thread() -> None:
    """And leaves nothing in hand."""
    loop = Loop()

    def source() -> Iterator[bytes]:
        yield from images(3)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(waited(source(), loop, ordered=True))
    assert all(future.cancelled() for future in loop.started.values())
