"""Many images, asked of a real service."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from convmlp_client import AsyncClient, Client, ClientClosed, ConnectionFailed, DeadlineExceeded, UnsupportedFormat
from tests.client.local_service import Service, Way, open_service, until, wait_until
from tests.service.frontend.rest_server import picture


def pictures(count: int) -> list[bytes]:
    return [picture(grey) for grey in range(count)]


async def test_a_stream_of_images(service: Service, way: Way) -> None:
    """Each image has its outcome, in the order of the images though the service answers in its own."""
    async with way.open(service) as ask:
        outcomes = await ask.many("classify_many", pictures(64), concurrency=16, top_k=1)
    assert [one.index for one in outcomes] == [*range(64)]
    assert [[row.index for row in one.result.labels] for one in outcomes] == [[grey] for grey in range(64)]
    assert {one.result.meta.model for one in outcomes} == {"fake_classify"}


async def test_no_order_is_asked_for(service: Service, way: Way) -> None:
    """Without `ordered` an outcome says by its index which image it is of."""
    async with way.open(service) as ask:
        outcomes = await ask.many("classify_many", pictures(30), ordered=False)
    assert sorted(one.index for one in outcomes) == [*range(30)]
    assert all(one.result.labels[0].index == one.index for one in outcomes)


@pytest.mark.parametrize("method", ["classify", "detect", "segment"])
async def test_many_are_answered_as_one(service: Service, way: Way, method: str) -> None:
    """An image's answer is the same, whether it is asked about alone or among others; so are its parameters."""
    parameters = {"top_k": 1} if method == "classify" else {"mask_format": "png"}
    async with way.open(service) as ask:
        alone = await ask(method, picture(60), **parameters)
        (among, _) = await ask.many(f"{method}_many", [picture(60), picture(61)], **parameters)
    assert among.result.to_dict() == alone.to_dict()
    assert among.result.meta.task is alone.meta.task


async def test_a_bad_picture_costs_only_itself(service: Service, way: Way, tmp_path: Path) -> None:
    """What is wrong with an image is in its own outcome; the others are answered."""
    images = [picture(1), b"no picture", tmp_path / "missing.jpg", "https://host/cat.jpg", picture(2)]
    async with way.open(service) as ask:
        outcomes = await ask.many("classify_many", images)
    assert [type(one.error) for one in outcomes] == [
        type(None),
        UnsupportedFormat,
        FileNotFoundError,
        ValueError,
        type(None),
    ]
    assert [one.image for one in outcomes] == images
    assert [one.result.labels[0].index for one in (outcomes[0], outcomes[4])] == [1, 2]


async def test_the_first_error_may_end_it(service: Service, way: Way) -> None:
    """With `raise_errors` there are results, and an exception for the first image without."""
    async with way.open(service) as ask:
        with pytest.raises(UnsupportedFormat):
            await ask.many("classify_many", [picture(1), b"no picture", picture(2)], raise_errors=True)


@pytest.mark.parametrize("transport", ["rest", "grpc"])
async def test_stopping_early_withdraws_what_is_in_hand(transport: str) -> None:
    """Leaving the loop takes the pictures out of the service's hands, and the client goes on to be of use."""
    with open_service() as service:
        async with AsyncClient(service.url(transport)) as client:
            endless = (picture(number % 250) for number in itertools.count())
            async for outcome in client.classify_many(endless, concurrency=4):
                if outcome.index == 5:
                    service.worker.runner.gate.clear()
                    await until(lambda: service.in_hand == 4)
                    break
            await until(lambda: service.in_hand == 0)
            service.worker.runner.gate.set()
            assert (await client.classify(picture(9))).labels[0].index == 9


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_stopping_early_withdraws_what_a_thread_has_in_hand(transport: str) -> None:
    """The same for the sync client."""
    with open_service() as service, Client(service.url(transport)) as client:
        outcomes = client.classify_many((picture(number % 250) for number in itertools.count()), concurrency=4)
        assert next(outcomes).result.labels[0].index == 0
        with service.held():
            outcomes.close()
            wait_until(lambda: service.in_hand == 0)
        assert client.classify(picture(9)).labels[0].index == 9


@pytest.mark.parametrize("transport", ["rest", "grpc"])
async def test_no_more_are_in_hand_than_were_allowed(transport: str) -> None:
    """At the service there are never more images than `concurrency`, nor than the client's own bound."""
    with open_service() as service:
        for concurrency, bound in ((5, 64), (64, 5)):
            async with AsyncClient(service.url(transport), max_concurrency=bound) as client:
                with service.held():
                    asking = asyncio.create_task(_all(client, pictures(40), concurrency))
                    await until(lambda: service.in_hand == 5)
                    await asyncio.sleep(0.1)  # time in which a sixth would have come
                    assert service.in_hand == 5
                assert await asking == 40


async def _all(client: AsyncClient, images: list[bytes], concurrency: int) -> int:
    return len([one.result async for one in client.classify_many(images, concurrency=concurrency)])


async def test_an_asynchronous_source(service: Service) -> None:
    """The async client takes asynchronous sources as well, and gives out answers while the source has nothing new."""

    async def source() -> AsyncIterator[bytes]:
        yield picture(1)
        await asyncio.Event().wait()

    async with AsyncClient(service.url("grpc")) as client:
        outcomes = client.classify_many(source())
        assert (await anext(outcomes)).result.labels[0].index == 1
        await outcomes.aclose()


async def test_each_image_has_its_own_deadline(way: Way) -> None:
    """A slow service costs the images that it is slow with, each after the time that one may take."""
    with open_service() as service:
        async with way.open(service) as ask:
            with service.held():
                outcomes = await ask.many("classify_many", pictures(6), concurrency=2, timeout_s=0.2)
            assert [type(one.error) for one in outcomes] == [DeadlineExceeded] * 6
            assert all(one.error is None for one in await ask.many("classify_many", pictures(6), concurrency=2))


async def test_a_service_that_is_gone_is_told_for_each_image(way: Way) -> None:
    """An endless source can be left then: the outcomes say what happened."""
    with open_service() as service:
        pass
    async with way.open(service, retries=0) as ask:
        outcomes = await ask.many("classify_many", pictures(3))
    assert [type(one.error) for one in outcomes] == [ConnectionFailed] * 3


async def test_a_busy_service_gets_them_all_in_the_end(way: Way) -> None:
    """Refusals among many images are met as those of one: the client comes back as told."""
    with open_service(max_queue_images=1) as service:
        async with way.open(service, retries=10) as ask:
            with service.held():
                asking = asyncio.create_task(ask.many("classify_many", pictures(8), concurrency=8))
                await until(lambda: service.answered("overloaded") > 0)
            assert [one.result.labels[0].index for one in await asking] == [*range(8)]


async def test_closing_the_client_ends_its_streams(service: Service, way: Way) -> None:
    """Whoever takes outcomes of a client that is closed meanwhile is told so, however endless the source."""
    async with way.open(service) as ask:
        with service.held():
            asking = asyncio.create_task(ask.many("classify_many", itertools.repeat(picture(7)), concurrency=2))
            await until(lambda: service.in_hand == 2)
            await ask.close()
            with pytest.raises(ClientClosed):
                await asking


async def test_a_progress_bar(service: Service, way: Way, capfd: pytest.CaptureFixture[str]) -> None:
    """It counts outcomes on stderr, and nothing goes to stdout."""
    async with way.open(service) as ask:
        assert all(one.result for one in await ask.many("classify_many", pictures(5), progress=True))
    out, err = capfd.readouterr()
    assert "5/5" in err
    assert "5/5" not in out
