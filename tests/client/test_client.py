"""Both clients over both transports, against a real service."""

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
    Internal,
    NotFound,
    Overloaded,
    RateLimited,
    Task,
    TooLarge,
    Unauthenticated,
    UnsupportedFormat,
)
from tests.client.local_service import VARIANTS, LocalService, Variant, open_service
from tests.service.frontend.rest_server import oversized_png, picture
from tests.waiting import until


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("classify", {}),
        ("classify", {"top_k": 2, "model": "fake_classify"}),
        ("detect", {}),
        ("detect", {"masks": False}),
        ("detect", {"score_threshold": 0.7, "mask_format": "png"}),
        ("detect", {"max_detections": 1, "mask_format": "polygon"}),
        ("embed", {}),
        ("embed", {"normalize": True, "model": "fake_classify"}),
        ("segment", {}),
        ("segment", {"mask_format": "none"}),
        ("segment", {"masks": True, "mask_format": "png", "model": None}),
    ],
)
async def test_all_variants_give_the_same_result(
    service: LocalService, method: str, parameters: dict[str, Any]
) -> None:
    """Both clients give the same result over both transports: labels, boxes, masks, model, and names of timings."""
    answers = []
    for variant in VARIANTS.values():
        async with variant.open(service) as client:
            answers.append(await client.call(method, picture(77), **parameters))
    assert len({repr((answer.to_dict(), answer.meta.model, answer.meta.task)) for answer in answers}) == 1
    for answer in answers:
        assert answer.meta.task is Task(method)
        assert answer.meta.model == ("fake_classify" if method == "embed" else f"fake_{method}")
        assert answer.meta.request_id
        assert list(answer.meta.timings_ms) == ["decode", "queue", "infer", "post", "total"]
        assert answer.meta.precision == "fp32"


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"tasks": [Task.SEGMENT, "classify"], "top_k": 2, "mask_format": "png"},
        {"models": ["fake_detect", "fake_classify"], "masks": False, "max_detections": 1},
    ],
)
async def test_all_variants_analyze_alike(service: LocalService, parameters: dict[str, Any]) -> None:
    """Both clients over both transports: the answers of the single methods, by task or by model, in their order."""
    tasks = parameters.get("tasks", list(Task)[:3])
    names = [str(name) for name in parameters.get("models", tasks)]
    shown = set()
    for variant in VARIANTS.values():
        async with variant.open(service) as client:
            analysis = await client.call("analyze", picture(77), **parameters)
            alone = await client.call("classify", picture(77), top_k=parameters.get("top_k"))
        assert analysis.meta.task is Task.ANALYZE
        assert list(analysis.answers) == names
        assert {name.removeprefix("fake_"): model for name, model in analysis.models.items()} == {
            name.removeprefix("fake_"): f"fake_{name.removeprefix('fake_')}" for name in names
        }
        label = next(one for name, one in analysis.answers.items() if name.endswith("classify"))
        assert (label.labels, label.meta.task, label.meta.model) == (alone.labels, Task.CLASSIFY, "fake_classify")
        assert analysis.draw(picture(77)).size == (80, 60)
        shown.add(repr((analysis.to_dict(), dict(analysis.models))))
    assert len(shown) == 1


async def test_a_model_that_fails_costs_an_analysis_only_its_answer(
    fresh_service: LocalService, variant: Variant
) -> None:
    """Its error is in `answers`, and raised by what needs the answer."""

    def takes(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
        if model == "fake_detect":
            raise RuntimeError("the device failed")

    fresh_service.worker.runner.takes = takes
    async with variant.open(fresh_service, retries=0) as client:
        analysis = await client.call("analyze", picture(77))
    assert isinstance(analysis.answers["detect"], Internal)
    assert analysis.answers["detect"].code == "internal"
    assert analysis["classify"].labels[0].index == 77
    with pytest.raises(Internal):
        analysis["detect"]
    with pytest.raises(Internal):
        analysis.draw(picture(77))
    with pytest.raises(KeyError):
        analysis["embed"]


async def test_parameters_reach_the_service(service: LocalService, variant: Variant) -> None:
    """Each keyword argument has the effect of the API's parameter of that name."""
    async with variant.open(service) as client:
        assert [row.index for row in (await client.call("classify", picture(9), top_k=3)).labels] == [9, 10, 11]
        assert len((await client.call("detect", picture(), score_threshold=0.7)).detections) == 1
        assert len((await client.call("detect", picture(), max_detections=1)).detections) == 1
        assert all(row.mask is None for row in (await client.call("detect", picture(), masks=False)).detections)
        assert isinstance((await client.call("segment", picture(), mask_format="png")).segments[0].mask.data, bytes)
        assert isinstance((await client.call("segment", picture(), mask_format="polygon")).segments[0].mask.data, tuple)


async def test_an_image_may_have_many_types(service: LocalService, variant: Variant, tmp_path: Path) -> None:
    """A path, bytes, an open file, a PIL image and an array of one image give the same labels."""
    data = picture(123)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    forms = [path, str(path), data, io.BytesIO(data), PIL.Image.open(path), np.asarray(PIL.Image.open(path))]
    async with variant.open(service) as client:
        answers = [await client.call("classify", form) for form in forms]
    assert {answer.labels for answer in answers} == {answers[0].labels}
    assert answers[0].labels[0].label == "grey 123"


@pytest.mark.parametrize(
    ("image", "parameters", "kind", "code", "words"),
    [
        (b"not an image", {}, UnsupportedFormat, "unsupported-format", "JPEG, PNG"),
        (picture()[:40], {}, BadImage, "image-undecodable", "truncated"),
        (oversized_png(30_000, 30_000), {}, TooLarge, "image-too-large", "pixels"),
        (picture(), {"top_k": 0}, BadParameter, "bad-parameter", "'top_k'"),
        (picture(), {"top_k": -1}, BadParameter, "bad-parameter", "'top_k'"),
        (picture(), {"model": "fake_detect"}, BadParameter, "bad-parameter", "'fake_detect'"),
        (picture(), {"model": "missing"}, NotFound, "model-not-found", "'missing'"),
    ],
)
async def test_errors_of_the_service_have_classes(
    service: LocalService,
    variant: Variant,
    image: bytes,
    parameters: dict[str, Any],
    kind: type[ClientError],
    code: str,
    words: str,
) -> None:
    """Each error of the service raises its class, with the service's code and detail, and is not retried."""
    before = service.request_count(code)
    async with variant.open(service) as client:
        with pytest.raises(ClientError) as caught:
            await client.call("classify", image, **parameters)
    error = caught.value
    assert (type(error), error.code, error.retry_after_s) == (kind, code, None)
    assert words in error.detail
    assert service.request_count(code) - before <= 1


async def test_invalid_arguments_raise_before_sending(service: LocalService, variant: Variant, tmp_path: Path) -> None:
    """Invalid arguments raise Python's own errors, and no request is sent."""
    before = service.request_count("ok")
    async with variant.open(service) as client:
        with pytest.raises(TypeError, match="unknown parameter 'topk'; expected one of model, top_k"):
            await client.call("classify", picture(), topk=3)
        with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
            await client.call("classify", tmp_path / "missing.jpg")
        with pytest.raises(ValueError, match="expected uint8"):
            await client.call("classify", np.zeros((4, 4, 3)))
        with pytest.raises(TypeError, match="the image has type int"):
            await client.call("classify", 3)
        with pytest.raises(BadImage, match="empty"):
            await client.call("classify", b"")
        with pytest.raises(ValueError, match="timeout_s is -1"):
            await client.call("classify", picture(), timeout_s=-1)
        with pytest.raises(ValueError, match="concurrency is 0"):
            await client.call_many("classify_many", [], concurrency=0)
    assert service.request_count("ok") == before


async def test_a_timeout_cancels_the_request(fresh_service: LocalService, variant: Variant) -> None:
    """A request that times out raises DeadlineExceeded, and the service stops working on it."""
    async with variant.open(fresh_service, timeout_s=60.0) as client:
        with fresh_service.device_blocked():
            with pytest.raises(DeadlineExceeded):
                await client.call("classify", picture(), timeout_s=0.5)
            await until(lambda: fresh_service.in_flight == 0)
        assert await client.call("classify", picture())


async def test_cancelling_a_task_cancels_the_request(service: LocalService) -> None:
    """Cancelling the caller's task cancels the request at the service."""
    for transport in ("rest", "grpc"):
        async with AsyncClient(service.url(transport)) as client:
            with service.device_blocked():
                task = asyncio.create_task(client.classify(picture()))
                await until(lambda: service.in_flight == 1)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await until(lambda: service.in_flight == 0)


async def test_overload_has_a_retry_after(variant: Variant) -> None:
    """Without retries, a service at capacity raises Overloaded with a Retry-After above zero and the request's id."""
    with open_service(max_queue_images=1) as service:
        async with variant.open(service, retries=0) as client:
            with service.device_blocked():
                tasks = [asyncio.create_task(client.call("classify", picture(grey))) for grey in range(6)]
                await until(lambda: service.request_count("overloaded") > 0)
            results = await asyncio.gather(*tasks, return_exceptions=True)
    refusals = [result for result in results if isinstance(result, BaseException)]
    assert len(refusals) == service.request_count("overloaded")
    for refusal in refusals:
        assert isinstance(refusal, Overloaded)
        assert refusal.retry_after_s is not None
        assert refusal.retry_after_s > 0
        assert refusal.request_id


@pytest.mark.settings(max_queue_images=1)
async def test_overload_is_retried(fresh_service: LocalService, variant: Variant) -> None:
    """With retries, requests that were refused with Overloaded succeed later."""
    async with variant.open(fresh_service, retries=10) as client:
        with fresh_service.device_blocked():
            tasks = [asyncio.create_task(client.call("classify", picture(grey))) for grey in range(6)]
            await until(lambda: fresh_service.request_count("overloaded") > 0)
        assert [(await task).labels[0].index for task in tasks] == [*range(6)]


async def test_rate_limits_have_their_own_error(variant: Variant) -> None:
    """A caller over its rate limit gets RateLimited, and is not retried if the Retry-After is too long."""
    with open_service(rate_limit_per_s=0.01, rate_limit_burst=1) as service:
        async with variant.open(service) as client:
            await client.call("classify", picture())
            with pytest.raises(RateLimited) as caught:
                await client.call("classify", picture())
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 15  # longer than `Retries.longest_wait_s`, so there was no further attempt
    assert service.request_count("rate-limited") == 1


async def test_the_api_key_is_sent(variant: Variant, tmp_path: Path) -> None:
    """With the right API key all requests succeed. Without it, or with a wrong one, they raise Unauthenticated."""
    keys = tmp_path / "keys"
    keys.write_text("me 0123456789abcdef0123456789abcdef\n")
    with open_service(api_keys_file=keys) as service:
        async with variant.open(service, api_key="0123456789abcdef0123456789abcdef\n") as client:
            assert await client.call("classify", picture())
            assert await client.call("models")
            (outcome,) = await client.call_many("classify_many", [picture()])
            assert outcome.result
        for key in (None, "wrong"):
            async with variant.open(service, api_key=key) as client:
                assert await client.call("ready")  # needs no key
                for request in (client.call("classify", picture()), client.call("models")):
                    with pytest.raises(Unauthenticated):
                        await request
                (outcome,) = await client.call_many("classify_many", [picture()])
                assert isinstance(outcome.error, Unauthenticated)


async def test_models_are_listed(service: LocalService, variant: Variant) -> None:
    """Both transports list the same models with the same fields."""
    async with variant.open(service) as client:
        models = await client.call("models")
    assert [model.name for model in models] == ["fake_classify", "fake_detect", "fake_segment"]
    classifier = models[0]
    assert (classifier.task, classifier.default, classifier.ready) == (Task.CLASSIFY, True, True)
    assert (classifier.device, classifier.precision) == ("cpu", "fp32")
    assert (classifier.labels[3], len(classifier.labels)) == ("grey 3", 256)
    assert classifier.weights_sha256 == service.front_end.engine.models()[0].config.weights_sha256


async def test_wait_until_ready(service: LocalService, variant: Variant) -> None:
    """With a ready service `wait_until_ready` returns. Without a service it raises an error with the reason."""
    async with variant.open(service) as client:
        assert await client.call("ready") is True
        await client.call("wait_until_ready", 60)
    async with variant.open_without_service() as client:
        assert await client.call("ready") is False
        with pytest.raises(DeadlineExceeded, match=r"was not ready within 0.5 s: "):
            await client.call("wait_until_ready", 0.5)


async def test_closing_ends_running_requests(service: LocalService, variant: Variant) -> None:
    """Closing a client ends its running requests, and later ones, with ClientClosed."""
    async with variant.open(service) as client:
        await client.call("classify", picture())
        with service.device_blocked():
            task = asyncio.create_task(client.call("classify", picture()))
            await until(lambda: service.in_flight == 1)
            await client.close()
            with pytest.raises(ClientClosed):
                await task
        await client.close()
        for request in (
            client.call("classify", picture()),
            client.call("ready"),
            client.call_many("classify_many", [picture()]),
        ):
            with pytest.raises(ClientClosed):
                await request


def test_many_threads_share_a_client(service: LocalService, transport: str) -> None:
    """Each thread gets the result of its own image."""
    wrong: list[int] = []

    def classify(grey: int) -> None:
        for _ in range(5):
            if client.classify(picture(grey), top_k=1).labels[0].index != grey:
                wrong.append(grey)

    with Client(service.url(transport)) as client:
        threads = [threading.Thread(target=classify, args=(grey,)) for grey in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


async def test_the_sync_client_works_inside_an_event_loop(service: LocalService, transport: str) -> None:
    """The sync client works in a thread that runs an event loop, such as a notebook's."""
    with Client(service.url(transport)) as client:
        assert client.classify(picture(5)).labels[0].index == 5
        assert [outcome.result.labels[0].index for outcome in client.classify_many([picture(6)])] == [6]


def test_an_async_client_belongs_to_one_event_loop(service: LocalService, transport: str) -> None:
    """Use in another event loop raises an error that explains this."""
    client = AsyncClient(service.url(transport))

    async def classify() -> None:
        await client.classify(picture())

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(classify())
        with pytest.raises(RuntimeError, match="another event loop; make one for each"):
            second.run(classify())
        first.run(client.aclose())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"url": "127.0.0.1:8000"}, "expected http://HOST:PORT"),
        ({"url": "ftp://host"}, "expected http://HOST:PORT"),
        ({"url": "http://"}, "expected http://HOST:PORT"),
        ({"url": "http://host:port"}, "expected http://HOST:PORT"),
        ({"url": "http://host/?model=a"}, "has more parts than the URL of a service"),
        ({"url": "grpc://host/path"}, "has more parts than the URL of a service"),
        ({"url": "http://xn--\xff"}, "is not a URL"),
        ({"url": "http://host", "timeout_s": 0}, "timeout_s is 0"),
        ({"url": "http://host", "timeout_s": float("inf")}, "timeout_s is inf"),
        ({"url": "http://host", "retries": -1}, "retries is -1"),
        ({"url": "http://host", "max_concurrency": 0}, "max_concurrency is 0"),
        ({"url": "http://host", "api_key": "kéy"}, "printable ASCII"),
        ({"url": "http://host", "ca_file": "ca.pem"}, "ca_file and client_certificate need https:// or grpcs://"),
        ({"url": "http://host", "compression": "gzip"}, "compression needs grpc://"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_constructor_checks_its_arguments(
    kind: type[Client] | type[AsyncClient], arguments: dict[str, Any], words: str
) -> None:
    """Both clients check their arguments when they are made."""
    with pytest.raises(ValueError, match=words):
        kind(**arguments)
