"""The unmodified `huggingface_hub` client, sync and async, against a real front-end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import pytest_asyncio
from huggingface_hub import AsyncInferenceClient, InferenceClient, InferenceTimeoutError, close_session
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from model.spec import ClassifyPostSpec
from model.types import BoolArray, Task
from tests.fakes import fake_bundle, fake_instances
from tests.service.frontend.rest_server import Rest, open_rest, picture

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # The async client's way to send bytes.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes/text content.:DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _session() -> Iterator[None]:
    """The client keeps one session for the whole process."""
    yield
    close_session()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Rest]:
    """A front-end with a model for each task, and one for instances."""
    async with open_rest(more=[fake_instances()]) as running:
        yield running


ALONE_OR_IN_JSON: tuple[dict[str, Any], ...] = ({}, {"top_k": 5})
"""The client sends an image as it is, or in JSON once a parameter is given."""
METHODS = {"classify": "image_classification", "detect": "object_detection", "segment": "image_segmentation"}


def url_of(rest: Rest, task: str, query: str = "") -> str:
    return f"http://127.0.0.1:{rest.port}/compat/huggingface/{task}{query}"


async def ask(rest: Rest, task: str, image: Any, query: str = "", **parameters: Any) -> list[Any]:  # noqa: ANN401
    """What the sync client makes of the answer; in a thread, for the server runs in this one."""
    client = InferenceClient(model=url_of(rest, task, query))
    return await asyncio.to_thread(getattr(client, METHODS[task]), image, **parameters)


def mask_of(element: Any) -> BoolArray:  # noqa: ANN401  (its class declares a string, the client puts a picture)
    assert isinstance(element.mask, PIL.Image.Image)
    assert (element.mask.format, element.mask.mode) == ("PNG", "L")
    pixels = np.asarray(element.mask)
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels > 0


async def test_image_classification(served: Rest) -> None:
    """Five labels by falling score, or as many as asked for."""
    rows = await ask(served, "classify", picture(7))
    assert [row.label for row in rows] == [f"grey {n}" for n in range(7, 12)]
    assert [row.score for row in rows] == [0.5**n for n in range(1, 6)]
    assert await ask(served, "classify", picture(7), top_k=2) == rows[:2]
    assert await ask(served, "classify", picture(7), top_k=2, function_to_apply="softmax") == rows[:2]
    assert await ask(served, "classify", picture(7), function_to_apply="softmax") == rows


async def test_the_function_of_a_multi_label_classifier() -> None:
    """`function_to_apply` names what makes a model's scores; another is refused, with the model's own."""
    bundle = fake_bundle(Task.CLASSIFY, "several")
    config = bundle.config.model_copy(update={"postprocessing": ClassifyPostSpec(activation="sigmoid")})
    async with open_rest(more=[replace(bundle, config=config)]) as rest:
        query = "?model=several"
        assert len(await ask(rest, "classify", picture(7), query, function_to_apply="sigmoid")) > 0
        with pytest.raises(HfHubHTTPError, match="'softmax', but the scores of several are made by sigmoid"):
            await ask(rest, "classify", picture(7), query, function_to_apply="softmax")


async def test_object_detection(served: Rest) -> None:
    """Detections by falling score with whole pixels, and with a threshold those above it."""
    body = picture(2, width=97, height=65)
    rows = await ask(served, "detect", body)
    assert [(row.label, row.score) for row in rows] == [("cat", 0.9), ("dog", 0.6)]
    assert [(row.box.xmin, row.box.ymin, row.box.xmax, row.box.ymax) for row in rows] == [
        (0, 0, 48, 32),
        (24, 16, 97, 65),
    ]
    assert all(type(value) is int for row in rows for value in row.box.values())
    assert await ask(served, "detect", body, threshold=0.7) == rows[:1]
    assert await ask(served, "detect", body, threshold=0.95) == []


@pytest.mark.parametrize(
    "parameters",
    [{}, {"subtask": "semantic"}, {"threshold": 0.9, "mask_threshold": 0.5, "overlap_mask_area_threshold": 0.5}],
)
async def test_semantic_segmentation(served: Rest, parameters: dict[str, Any]) -> None:
    """Segments by falling area, masks that cover each pixel once, and no invented score."""
    body = picture(3, width=96, height=64)
    rows = await ask(served, "segment", body, **parameters)
    assert [(row.label, row.score) for row in rows] == [("background", None), ("dog", None)]
    masks = [mask_of(row) for row in rows]
    assert np.array_equal(masks[0], np.broadcast_to(np.arange(96) < 48, (64, 96)))
    assert np.array_equal(masks[1], ~masks[0])


async def test_instance_segmentation(served: Rest) -> None:
    """With subtask `instance` a detector with masks answers: by falling score, and masks may overlap."""
    body = picture(2, width=96, height=64)

    async def instances(**parameters: Any) -> list[Any]:  # noqa: ANN401
        return await ask(served, "segment", body, subtask="instance", **parameters)

    rows = await instances()
    assert [(row.label, row.score) for row in rows] == [("cat", 0.9), ("dog", 0.6)]
    masks = [mask_of(row) for row in rows]
    assert masks[0][:32, :48].all()
    assert masks[0].sum() == 32 * 48
    assert masks[1][16:, 24:].all()
    assert masks[1].sum() == 48 * 72
    assert len(await instances(threshold=0.7)) == 1
    # The fake's probability is sigmoid(4) = 0.982 inside, and falls off towards the edges.
    assert [mask_of(row).any() for row in await instances(mask_threshold=0.99)] == [False, False]
    assert [mask_of(row).any() for row in await instances(mask_threshold=0.98)] == [True, True]


async def test_a_model_is_named_in_the_url(served: Rest) -> None:
    """`?model=` chooses among a task's models, and what a named one does needs no subtask."""
    rows = await ask(served, "segment", picture(), "?model=fake_instances")
    assert rows[0].score == 0.9
    rows = await ask(served, "segment", picture(), "?model=fake_segment")
    assert rows[0].score is None


@pytest.mark.settings(tasks=(), more=[fake_instances()])
async def test_where_only_instances_are_served(fresh_rest: Rest) -> None:
    """Without a semantic model a detector with masks answers; without either there is no such model."""
    assert (await ask(fresh_rest, "segment", picture()))[0].score == 0.9
    with pytest.raises(HfHubHTTPError, match="no served model does the subtask 'semantic'"):
        await ask(fresh_rest, "segment", picture(), subtask="semantic")
    with pytest.raises(HfHubHTTPError, match="no model for the task 'classify'"):
        await ask(fresh_rest, "classify", picture())


async def test_every_kind_of_input(served: Rest, tmp_path: Path) -> None:
    """Bytes, a path, a file's name and a URL, whether the client sends them as they are or in JSON."""
    for form in ("PNG", "JPEG", "WEBP"):
        path = tmp_path / f"picture.{form.lower()}"
        path.write_bytes(picture(9, form=form))
        for image in (path.read_bytes(), path, str(path)):
            for parameters in ALONE_OR_IN_JSON:
                assert (await ask(served, "classify", image, **parameters))[0].label == "grey 9"
    sample = f"http://127.0.0.1:{served.port}/web/samples/tabby.jpg"
    for parameters in ALONE_OR_IN_JSON:
        assert len(await ask(served, "classify", sample, **parameters)) == 5


async def test_async_client(served: Rest) -> None:
    """The async client's three tasks, many at once, each with its own answer."""
    async with (
        AsyncInferenceClient(model=url_of(served, "classify")) as classify,
        AsyncInferenceClient(model=url_of(served, "detect")) as detect,
        AsyncInferenceClient(model=url_of(served, "segment")) as segment,
    ):
        answers = await asyncio.gather(*(classify.image_classification(picture(n), top_k=1) for n in range(16)))
        assert [rows[0].label for rows in answers] == [f"grey {n}" for n in range(16)]
        assert (await classify.image_classification(picture(3)))[0].label == "grey 3"
        assert len(await detect.object_detection(picture())) == 2
        assert len(await detect.object_detection(picture(), threshold=0.7)) == 1
        assert mask_of((await segment.image_segmentation(picture(width=80, height=60)))[0]).shape == (60, 80)
        assert (await segment.image_segmentation(picture(), subtask="instance"))[0].score == 0.9
        with pytest.raises(BadRequestError, match="empty"):
            await classify.image_classification(b"")


@pytest.mark.parametrize(
    ("task", "body", "parameters", "query", "status", "words"),
    [
        ("classify", b"%PDF-1.7", {}, "", 415, "PDF document, which is not supported"),
        ("classify", picture()[:60], {}, "", 400, "truncated|corrupt|decode"),
        ("classify", b"", {"top_k": 1}, "", 400, "empty"),
        ("classify", picture(), {"top_k": 0}, "", 422, "top_k"),
        ("classify", picture(), {"top_k": 1001}, "", 422, "top_k"),
        ("classify", picture(), {"function_to_apply": "sigmoid"}, "", 422, "softmax"),
        ("classify", picture(), {"function_to_apply": "none"}, "", 422, "softmax"),
        ("classify", picture(), {"function_to_apply": "tanh"}, "", 422, "function_to_apply"),
        ("classify", picture(), {}, "?model=nothing", 404, "no model 'nothing'"),
        ("classify", picture(), {}, "?model=fake_detect", 422, "fake_detect"),
        ("detect", picture(), {"threshold": 1.5}, "", 422, "threshold"),
        ("detect", picture(), {"threshold": -0.1}, "", 422, "threshold"),
        ("segment", picture(), {"subtask": "panoptic"}, "", 422, "fake_segment does semantic"),
        ("segment", picture(), {"subtask": "other"}, "", 422, "subtask"),
        ("segment", picture(), {"mask_threshold": 2.0}, "", 422, "mask_threshold"),
        ("segment", picture(), {"overlap_mask_area_threshold": 2.0}, "", 422, "overlap_mask"),
        ("segment", picture(), {"subtask": "instance"}, "?model=fake_segment", 422, "does semantic"),
        ("segment", picture(), {}, "?model=fake_detect", 422, "fake_detect"),
    ],
)
async def test_errors_carry_our_words(
    served: Rest, task: str, body: bytes, parameters: dict[str, Any], query: str, status: int, words: str
) -> None:
    """What the client raises has the contract's status and the service's own message."""
    with pytest.raises(HfHubHTTPError, match=words) as raised:
        await ask(served, task, body, query, **parameters)
    assert raised.value.response.status_code == status
    assert raised.value.request_id == raised.value.response.headers["x-request-id"]
    assert raised.value.response.json()["error"] in str(raised.value)


async def test_the_token_is_the_key(tmp_path: Path) -> None:
    """The client's `token` (or `api_key`) opens a guarded service; without it the error names the header."""
    key = "hf_0123456789abcdef"
    (tmp_path / "keys").write_text(f"{key}\n", encoding="ascii")
    async with open_rest(api_keys_file=tmp_path / "keys") as rest:
        url = url_of(rest, "classify")
        for client in (InferenceClient(model=url, token=key), InferenceClient(model=url, api_key=key)):
            assert len(await asyncio.to_thread(client.image_classification, picture())) == 5
        async with AsyncInferenceClient(model=url, token=key) as other:
            assert len(await other.image_classification(picture())) == 5
        wrong = InferenceClient(model=url, token="hf_wrong")
        with pytest.raises(HfHubHTTPError, match="Authorization: Bearer KEY") as raised:
            await asyncio.to_thread(wrong.image_classification, picture())
        assert raised.value.response.status_code == 401


@pytest.mark.settings(rate_limit_per_s=0.001, rate_limit_burst=1)
async def test_over_the_rate(fresh_rest: Rest) -> None:
    """A client over its rate gets a 429 with Retry-After."""
    await ask(fresh_rest, "classify", picture())
    with pytest.raises(HfHubHTTPError, match="try again in") as raised:
        await ask(fresh_rest, "classify", picture())
    assert raised.value.response.status_code == 429
    assert int(raised.value.response.headers["retry-after"]) > 0


async def test_deadlines(fresh_rest: Rest) -> None:
    """The client's own time-out, and the deadline that it may send as a header, both end its wait."""
    fresh_rest.worker.runner.unblocked.clear()
    url = url_of(fresh_rest, "classify")
    with pytest.raises(InferenceTimeoutError):
        await asyncio.to_thread(InferenceClient(model=url, timeout=0.5).image_classification, picture())
    patient = InferenceClient(model=url, headers={"X-Request-Timeout-Ms": "500"})
    with pytest.raises(HfHubHTTPError, match="timed out") as raised:
        await asyncio.to_thread(patient.image_classification, picture())
    assert raised.value.response.status_code == 504


@pytest.mark.settings(with_worker=False)
async def test_no_worker(fresh_rest: Rest) -> None:
    """Without a worker the client raises a 503 with the reason."""
    with pytest.raises(HfHubHTTPError, match="worker") as raised:
        await ask(fresh_rest, "segment", picture())
    assert raised.value.response.status_code == 503
