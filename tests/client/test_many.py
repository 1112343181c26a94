"""Many images, against a real service."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from convmlp_client import AsyncClient, Client, ClientClosed, ConnectionFailed, DeadlineExceeded, UnsupportedFormat
from tests.client.local_service import LocalService, Variant, open_service, wait_until
from tests.service.frontend.rest_server import picture
from tests.waiting import until


def pictures(count: int) -> list[bytes]:
    return [picture(grey) for grey in range(count)]


async def test_outcomes_are_in_order(service: LocalService, variant: Variant) -> None:
    """Each image has an outcome. Outcomes are in the order of the images, whatever the order of the replies."""
    async with variant.open(service) as client:
        outcomes = await client.call_many("classify_many", pictures(64), concurrency=16, top_k=1)
    assert [one.index for one in outcomes] == [*range(64)]
    assert [[row.index for row in one.result.labels] for one in outcomes] == [[grey] for grey in range(64)]
    assert {one.result.meta.model for one in outcomes} == {"fake_classify"}


async def test_unordered_outcomes_have_their_index(service: LocalService, variant: Variant) -> None:
    """Without `ordered`, the index of an outcome identifies its image."""
    async with variant.open(service) as client:
        outcomes = await client.call_many("classify_many", pictures(30), ordered=False)
    assert sorted(one.index for one in outcomes) == [*range(30)]
    assert all(one.result.labels[0].index == one.index for one in outcomes)


@pytest.mark.parametrize("method", ["classify", "detect", "segment", "analyze"])
async def test_many_give_the_same_results_as_one(service: LocalService, variant: Variant, method: str) -> None:
    """An image has the same result, with the same parameters, alone and among others."""
    parameters = {"top_k": 1} if method in ("classify", "analyze") else {"mask_format": "png"}
    async with variant.open(service) as client:
        alone = await client.call(method, picture(60), **parameters)
        (among, _) = await client.call_many(f"{method}_many", [picture(60), picture(61)], **parameters)
    assert among.result.to_dict() == alone.to_dict()
    assert among.result.meta.task is alone.meta.task


async def test_a_bad_image_fails_alone(service: LocalService, variant: Variant, tmp_path: Path) -> None:
    """The error of a bad image is in its own outcome. The other images have results."""
    images = [picture(1), b"no picture", tmp_path / "missing.jpg", "https://host/cat.jpg", picture(2)]
    async with variant.open(service) as client:
        outcomes = await client.call_many("classify_many", images)
    assert [type(one.error) for one in outcomes] == [
        type(None),
        UnsupportedFormat,
        FileNotFoundError,
        ValueError,
        type(None),
    ]
    assert [one.image for one in outcomes] == images
    assert [one.result.labels[0].index for one in (outcomes[0], outcomes[4])] == [1, 2]


async def test_a_bad_image_fails_its_analysis_alone(service: LocalService, variant: Variant) -> None:
    """Its outcome has the error of the image, and the others' their answers."""
    async with variant.open(service) as client:
        outcomes = await client.call_many("analyze_many", [picture(1), b"no picture", picture(2)])
    assert [type(one.error) for one in outcomes] == [type(None), UnsupportedFormat, type(None)]
    assert [outcomes[at].result["classify"].labels[0].index for at in (0, 2)] == [1, 2]


async def test_raise_errors(service: LocalService, variant: Variant) -> None:
    """With `raise_errors` the first error of an image is raised."""
    async with variant.open(service) as client:
        with pytest.raises(UnsupportedFormat):
            await client.call_many("classify_many", [picture(1), b"no picture", picture(2)], raise_errors=True)


async def test_stopping_early_cancels_running_requests(transport: str) -> None:
    """Leaving the loop cancels the requests at the service. The client remains usable."""
    first_yielded = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield picture(0)
        await first_yielded.wait()
        for number in itertools.count(1):
            yield picture(number % 250)

    with open_service() as service:
        async with AsyncClient(service.url(transport)) as client:
            with ExitStack() as blocked:
                async for _ in client.classify_many(source(), concurrency=4):
                    blocked.enter_context(service.device_blocked())
                    first_yielded.set()
                    await until(lambda: service.in_flight == 4)
                    break
                await until(lambda: service.in_flight == 0)
            assert (await client.classify(picture(9))).labels[0].index == 9


def test_stopping_early_cancels_running_requests_of_the_sync_client(
    fresh_service: LocalService, transport: str
) -> None:
    """Closing the generator cancels the requests at the service. The client remains usable."""
    with Client(fresh_service.url(transport)) as client:
        outcomes = client.classify_many((picture(number % 250) for number in itertools.count()), concurrency=4)
        assert next(outcomes).result.labels[0].index == 0
        with fresh_service.device_blocked():
            outcomes.close()
            wait_until(lambda: fresh_service.in_flight == 0)
        assert client.classify(picture(9)).labels[0].index == 9


async def test_concurrency_is_bounded(fresh_service: LocalService, transport: str) -> None:
    """The service never has more images of the caller than `concurrency`, nor more than `max_concurrency`."""
    for concurrency, bound in ((5, 64), (64, 5)):
        async with (
            AsyncClient(fresh_service.url(transport), max_concurrency=bound) as client,
            AsyncClient(fresh_service.url(transport)) as other,
        ):
            with fresh_service.device_blocked():
                task = asyncio.create_task(_all(client, pictures(40), concurrency))
                await until(lambda: fresh_service.in_flight == 5)
                for _ in range(10):  # round trips, in which a sixth request would have arrived
                    assert await other.ready()
                assert fresh_service.in_flight == 5
            assert await task == 40


async def _all(client: AsyncClient, images: list[bytes], concurrency: int) -> int:
    return len([one.result async for one in client.classify_many(images, concurrency=concurrency)])


async def test_an_asynchronous_source(service: LocalService) -> None:
    """The async client reads an asynchronous source, and yields results while the source waits."""

    async def source() -> AsyncIterator[bytes]:
        yield picture(1)
        await asyncio.Event().wait()

    async with AsyncClient(service.url("grpc")) as client:
        outcomes = client.classify_many(source())
        assert (await anext(outcomes)).result.labels[0].index == 1
        await outcomes.aclose()


async def test_each_image_has_its_own_timeout(fresh_service: LocalService, variant: Variant) -> None:
    """The timeout starts anew for each image. Later images succeed once the service is fast again."""
    async with variant.open(fresh_service) as client:
        with fresh_service.device_blocked():
            outcomes = await client.call_many("classify_many", pictures(6), concurrency=2, timeout_s=0.5)
        assert [type(one.error) for one in outcomes] == [DeadlineExceeded] * 6
        assert all(one.error is None for one in await client.call_many("classify_many", pictures(6), concurrency=2))


async def test_a_stopped_service_fails_each_image(variant: Variant) -> None:
    """Without a service each image's outcome has ConnectionFailed."""
    async with variant.open_without_service(retries=0) as client:
        outcomes = await client.call_many("classify_many", pictures(3))
    assert [type(one.error) for one in outcomes] == [ConnectionFailed] * 3


@pytest.mark.settings(max_queue_images=1)
async def test_overload_among_many_is_retried(fresh_service: LocalService, variant: Variant) -> None:
    """Images refused with Overloaded are retried, and all have results."""
    async with variant.open(fresh_service, retries=10) as client:
        with fresh_service.device_blocked():
            task = asyncio.create_task(client.call_many("classify_many", pictures(8), concurrency=8))
            await until(lambda: fresh_service.request_count("overloaded") > 0)
        assert [one.result.labels[0].index for one in await task] == [*range(8)]


async def test_closing_the_client_ends_the_iteration(service: LocalService, variant: Variant) -> None:
    """Closing a client raises ClientClosed in the iteration, even if the source is endless."""
    async with variant.open(service) as client:
        with service.device_blocked():
            task = asyncio.create_task(client.call_many("classify_many", itertools.repeat(picture(7)), concurrency=2))
            await until(lambda: service.in_flight == 2)
            await client.close()
            with pytest.raises(ClientClosed):
                await task


async def test_the_progress_bar_counts_outcomes(
    service: LocalService, variant: Variant, capfd: pytest.CaptureFixture[str]
) -> None:
    """The progress bar counts outcomes on stderr. Nothing is written to stdout."""
    async with variant.open(service) as client:
        assert all(one.result for one in await client.call_many("classify_many", pictures(5), progress=True))
    out, err = capfd.readouterr()
    assert "5/5" in err
    assert "5/5" not in out
