"""One client, four ways to ask, the same answers."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from convmlp_client import (
    AsyncClient,
    BadImage,
    BadParameter,
    Client,
    ClientClosed,
    ClientError,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    RateLimited,
    Task,
    TooLarge,
    Unauthenticated,
    UnsupportedFormat,
)
from tests.client.local_service import WAYS, Service, Way, open_service, until
from tests.service.frontend.rest_server import oversized_png, picture


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("classify", {}),
        ("classify", {"top_k": 2, "model": "fake_classify"}),
        ("detect", {}),
        ("detect", {"masks": False}),
        ("detect", {"score_threshold": 0.7, "mask_format": "png"}),
        ("detect", {"max_detections": 1, "mask_format": "polygon"}),
        ("segment", {}),
        ("segment", {"mask_format": "none"}),
        ("segment", {"masks": True, "mask_format": "png", "model": None}),
    ],
)
async def test_all_ways_give_the_same(service: Service, method: str, parameters: dict[str, Any]) -> None:
    """Whichever client and transport asks, a picture has one answer, masks and timings' names included."""
    answers = []
    for way in WAYS.values():
        async with way.open(service) as ask:
            answers.append(await ask(method, picture(77), **parameters))
    assert len({repr((answer.to_dict(), answer.meta.model, answer.meta.task)) for answer in answers}) == 1
    for answer in answers:
        assert answer.meta.task is Task(method)
        assert answer.meta.model == f"fake_{method}"
        assert answer.meta.request_id
        assert list(answer.meta.timings_ms) == ["decode", "queue", "infer", "post", "total"]


async def test_parameters_reach_the_service(service: Service, way: Way) -> None:
    """Each keyword argument does what the contract says of the parameter of its name."""
    async with way.open(service) as ask:
        assert [row.index for row in (await ask("classify", picture(9), top_k=3)).labels] == [9, 10, 11]
        assert len((await ask("detect", picture(), score_threshold=0.7)).detections) == 1
        assert len((await ask("detect", picture(), max_detections=1)).detections) == 1
        assert all(row.mask is None for row in (await ask("detect", picture(), masks=False)).detections)
        assert isinstance((await ask("segment", picture(), mask_format="png")).segments[0].mask.data, bytes)
        assert isinstance((await ask("segment", picture(), mask_format="polygon")).segments[0].mask.data, tuple)


async def test_a_picture_may_be_given_in_many_forms(service: Service, way: Way, tmp_path: Path) -> None:
    """Path, bytes, open file, PIL image and array of one picture have one answer."""
    data = picture(123)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    forms = [path, str(path), data, io.BytesIO(data), PIL.Image.open(path), np.asarray(PIL.Image.open(path))]
    async with way.open(service) as ask:
        answers = [await ask("classify", form) for form in forms]
    assert {answer.labels for answer in answers} == {answers[0].labels}
    assert answers[0].labels[0].label == "grey 123"


@pytest.mark.parametrize(
    ("image", "parameters", "kind", "code", "words"),
    [
        (b"no picture at all", {}, UnsupportedFormat, "unsupported-format", "JPEG, PNG"),
        (picture()[:40], {}, BadImage, "image-undecodable", "truncated"),
        (oversized_png(30_000, 30_000), {}, TooLarge, "image-too-large", "pixels"),
        (picture(), {"top_k": 0}, BadParameter, "bad-parameter", "'top_k'"),
        (picture(), {"top_k": -1}, BadParameter, "bad-parameter", "'top_k'"),
        (picture(), {"model": "fake_detect"}, BadParameter, "bad-parameter", "'fake_detect'"),
        (picture(), {"model": "nobody"}, NotFound, "model-not-found", "'nobody'"),
    ],
)
async def test_errors_are_the_services(
    service: Service,
    way: Way,
    image: bytes,
    parameters: dict[str, Any],
    kind: type[ClientError],
    code: str,
    words: str,
) -> None:
    """Each row of the errors table is a class of its own with the service's code and words, and is not sent again."""
    before = service.answered(code)
    async with way.open(service) as ask:
        with pytest.raises(ClientError) as caught:
            await ask("classify", image, **parameters)
    error = caught.value
    assert (type(error), error.code, error.retry_after_s) == (kind, code, None)
    assert words in error.detail
    assert service.answered(code) - before <= 1


async def test_mistakes_are_told_before_anything_is_sent(service: Service, way: Way, tmp_path: Path) -> None:
    """What is wrong in the caller's own process is a Python error of the kind that it is."""
    before = service.answered("ok")
    async with way.open(service) as ask:
        with pytest.raises(TypeError, match="there is no parameter 'topk' here; there are model, top_k"):
            await ask("classify", picture(), topk=3)
        with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
            await ask("classify", tmp_path / "missing.jpg")
        with pytest.raises(ValueError, match="expected uint8"):
            await ask("classify", np.zeros((4, 4, 3)))
        with pytest.raises(TypeError, match="cannot be read from int"):
            await ask("classify", 3)
        with pytest.raises(BadImage, match="empty"):
            await ask("classify", b"")
        with pytest.raises(ValueError, match="timeout_s is -1"):
            await ask("classify", picture(), timeout_s=-1)
        with pytest.raises(ValueError, match="concurrency is 0"):
            await ask.many("classify_many", [], concurrency=0)
    assert service.answered("ok") == before


async def test_the_deadline_is_the_callers(way: Way) -> None:
    """Where the answer does not come in time the caller is told so, and the service no longer works on it."""
    with open_service() as service:
        async with way.open(service, timeout_s=60.0) as ask:
            with service.held():
                with pytest.raises(DeadlineExceeded):
                    await ask("classify", picture(), timeout_s=0.2)
                await until(lambda: service.in_hand == 0)
            assert await ask("classify", picture())


async def test_an_abandoned_request_is_withdrawn(service: Service) -> None:
    """Cancelling the task that asks takes the picture out of the service's hands."""
    for transport in ("rest", "grpc"):
        async with AsyncClient(service.url(transport)) as client:
            with service.held():
                asking = asyncio.create_task(client.classify(picture()))
                await until(lambda: service.in_hand == 1)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                await until(lambda: service.in_hand == 0)


async def test_a_refusal_says_when_to_come_back(way: Way) -> None:
    """Without retries a busy service's refusal is told at once, with the time that it names."""
    with open_service(max_queue_images=1) as service:
        async with way.open(service, retries=0) as ask:
            with service.held():
                asking = [asyncio.create_task(ask("classify", picture(grey))) for grey in range(6)]
                await until(lambda: service.answered("overloaded") > 0)
            answers = await asyncio.gather(*asking, return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(refusals) == service.answered("overloaded")
    for refusal in refusals:
        assert isinstance(refusal, Overloaded)
        assert refusal.retry_after_s is not None
        assert refusal.retry_after_s > 0
        assert refusal.request_id


async def test_a_busy_service_is_asked_again(way: Way) -> None:
    """With retries the refusal is not the end: the client comes back as told and gets its answer."""
    with open_service(max_queue_images=1) as service:
        async with way.open(service, retries=10) as ask:
            with service.held():
                asking = [asyncio.create_task(ask("classify", picture(grey))) for grey in range(6)]
                await until(lambda: service.answered("overloaded") > 0)
            assert [(await answer).labels[0].index for answer in asking] == [*range(6)]


async def test_rate_limits_are_told_apart(way: Way) -> None:
    """One caller over its own rate is another error than a service that has too much to do."""
    with open_service(rate_limit_per_s=0.01, rate_limit_burst=1) as service:
        async with way.open(service) as ask:
            await ask("classify", picture())
            with pytest.raises(RateLimited) as caught:
                await ask("classify", picture())
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 15  # too long to wait for: it was not asked again
    assert service.answered("rate-limited") == 1


async def test_a_key_opens_the_service(way: Way, tmp_path: Path) -> None:
    """The API key is sent as the contract says; without it, or with a wrong one, the service's refusal is told."""
    keys = tmp_path / "keys"
    keys.write_text("me 0123456789abcdef0123456789abcdef\n")
    with open_service(api_keys_file=keys) as service:
        async with way.open(service, api_key="0123456789abcdef0123456789abcdef\n") as ask:
            assert await ask("classify", picture())
            assert await ask("models")
            (outcome,) = await ask.many("classify_many", [picture()])
            assert outcome.result
        for key in (None, "wrong"):
            async with way.open(service, api_key=key) as ask:
                assert await ask("ready")  # health is open to everyone
                for asked in (ask("classify", picture()), ask("models")):
                    with pytest.raises(Unauthenticated):
                        await asked
                (outcome,) = await ask.many("classify_many", [picture()])
                assert isinstance(outcome.error, Unauthenticated)


async def test_models_are_listed(service: Service, way: Way) -> None:
    """Over both transports a served model is described alike."""
    async with way.open(service) as ask:
        models = await ask("models")
    assert [model.name for model in models] == ["fake_classify", "fake_detect", "fake_segment"]
    classifier = models[0]
    assert (classifier.task, classifier.default, classifier.ready) == (Task.CLASSIFY, True, True)
    assert (classifier.device, classifier.precision) == ("cpu", "fp32")
    assert (classifier.labels[3], len(classifier.labels)) == ("grey 3", 256)
    assert classifier.weights_sha256 == service.front_end.engine.models()[0].config.weights_sha256


async def test_readiness_is_waited_for(way: Way) -> None:
    """`ready` says what is so now, `wait_until_ready` returns once it is; what never is has a reason."""
    with open_service() as service:
        async with way.open(service) as ask:
            assert await ask("ready") is True
            await ask("wait_until_ready", 20)
            service.worker.runner.shift = 7  # its answers are wrong from now on
    async with way.open(service) as ask:  # nobody is there any more
        assert await ask("ready") is False
        with pytest.raises(DeadlineExceeded, match=r"was not ready within 0.3 s: "):
            await ask("wait_until_ready", 0.3)


async def test_closing_ends_what_is_in_hand(service: Service, way: Way) -> None:
    """Whoever waits for an answer of a client that another closes is told so, and so is whoever asks it later."""
    async with way.open(service) as ask:
        await ask("classify", picture())
        with service.held():
            asking = asyncio.create_task(ask("classify", picture()))
            await until(lambda: service.in_hand == 1)
            await ask.close()
            with pytest.raises(ClientClosed):
                await asking
        await ask.close()
        for asked in (ask("classify", picture()), ask("ready"), ask.many("classify_many", [picture()])):
            with pytest.raises(ClientClosed):
                await asked


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_many_threads_share_a_client(service: Service, transport: str) -> None:
    """Answers find the thread that asked."""
    wrong: list[int] = []

    def ask(grey: int) -> None:
        for _ in range(5):
            if client.classify(picture(grey), top_k=1).labels[0].index != grey:
                wrong.append(grey)

    with Client(service.url(transport)) as client:
        threads = [threading.Thread(target=ask, args=(grey,)) for grey in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize("transport", ["rest", "grpc"])
async def test_the_sync_client_works_inside_an_event_loop(service: Service, transport: str) -> None:
    """In a notebook, say, an event loop runs already in the thread that asks."""
    with Client(service.url(transport)) as client:
        assert client.classify(picture(5)).labels[0].index == 5
        assert [outcome.result.labels[0].index for outcome in client.classify_many([picture(6)])] == [6]


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_an_async_client_belongs_to_one_event_loop(service: Service, transport: str) -> None:
    """Its connections cannot be used in another, and the error says so."""
    client = AsyncClient(service.url(transport))

    async def ask() -> None:
        await client.classify(picture())

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(ask())
        with pytest.raises(RuntimeError, match="another event loop; make one for each"):
            second.run(ask())
        first.run(client.aclose())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "127.0.0.1:8000"}, "expected http://HOST:PORT"),
        ({"url": "ftp://host"}, "expected http://HOST:PORT"),
        ({"url": "http://"}, "expected http://HOST:PORT"),
        ({"url": "http://host:port"}, "expected http://HOST:PORT"),
        ({"url": "http://host/?model=a"}, "names more than a service"),
        ({"url": "grpc://host/path"}, "names more than a service"),
        ({"url": "http://xn--\xff"}, "is not a URL"),
        ({"url": "http://host", "timeout_s": 0}, "timeout_s is 0"),
        ({"url": "http://host", "timeout_s": float("inf")}, "timeout_s is inf"),
        ({"url": "http://host", "retries": -1}, "retries is -1"),
        ({"url": "http://host", "max_concurrency": 0}, "max_concurrency is 0"),
        ({"url": "http://host", "api_key": "kéy"}, "printable ASCII"),
        ({"url": "http://host", "ca_file": "ca.pem"}, "certificates are for https:// and grpcs://"),
        ({"url": "http://host", "compression": "gzip"}, "compression is for gRPC"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_wrong_arguments_are_refused(kind: type[Client] | type[AsyncClient], arguments: Any, words: str) -> None:  # noqa: ANN401
    """They are met where the client is made, not where it is first asked."""
    with pytest.raises(ValueError, match=words):
        kind(**arguments)
