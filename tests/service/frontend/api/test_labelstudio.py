"""Requests as Label Studio sends them, against a real front-end; Label Studio itself is in `tests/clients`."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
import pytest_asyncio

from service.frontend.api.compat.labelstudio.pictures import MAX_HOSTS, LabelStudioHost, LabelStudioHosts
from tests.fakes import fake_instances
from tests.model.postprocess.test_brush_rle import decoded
from tests.service.frontend.picture_site import PictureSite, open_site, sends
from tests.service.frontend.rest_server import Rest, open_rest, picture, problem_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

PREFIX = "/compat/labelstudio"
PROJECT = "1.1796041601"
WIDTH, HEIGHT = 96, 64
CAT, DOG = 2, 3
"""Grey levels: the fake detector's first box is a cat or a dog, the fake segments' right half likewise."""


def config(*controls: str, image: str = '<Image name="img" value="$image"/>') -> str:
    return f"<View>{image}{''.join(controls)}</View>"


def control(tag: str, *labels: str, name: str = "", more: str = "") -> str:
    """`labels` are attributes of a label each, or values."""
    child = "Choice" if tag == "Choices" else "Label"
    written = "".join(f"<{child} {one if '=' in one else f'value={quoteattr(one)}'}/>" for one in labels)
    return f'<{tag} name="{name or tag}" toName="img" {more}>{written}</{tag}>'


BOXES = config(control("RectangleLabels", "cat", "dog"))


def encoded(grey: int = CAT) -> str:
    return base64.b64encode(picture(grey, WIDTH, HEIGHT)).decode()


def body(label_config: str, *values: object) -> dict[str, Any]:
    """What Label Studio 1.23 posts to /predict, for tasks whose pictures are `values`."""
    return {
        "tasks": [
            {"id": 10 + at, "data": {"image": value}, "meta": {}, "project": 1, "is_labeled": False, "predictions": []}
            for at, value in enumerate(values)
        ],
        "project": PROJECT,
        "label_config": label_config,
        "params": {"login": None, "password": None, "context": None},
    }


async def predict(rest: Rest, label_config: str, *values: object, **headers: str) -> list[dict[str, Any]]:
    answered = await rest.http.post(f"{PREFIX}/predict", json=body(label_config, *values), headers=headers)
    assert answered.status_code == 200, answered.text
    results: list[dict[str, Any]] = answered.json()["results"]
    assert len(results) == len(values)
    return results


async def regions(rest: Rest, label_config: str, grey: int = CAT) -> list[dict[str, Any]]:
    (prediction,) = await predict(rest, label_config, encoded(grey))
    found: list[dict[str, Any]] = prediction["result"]
    return found


async def setup(rest: Rest, label_config: str, **more: object) -> Any:  # noqa: ANN401  (httpx2's response)
    asked = {"project": PROJECT, "schema": label_config, "hostname": "", "access_token": "", "extra_params": None}
    return await rest.http.post(f"{PREFIX}/setup", json=asked | more)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Rest]:
    """A front-end with a model for each task, and one for instances."""
    async with open_rest(more=[fake_instances()]) as running:
        yield running


async def test_rectangles(served: Rest) -> None:
    """Boxes in percent of the picture, under the names of the control and of its picture, by falling score."""
    first, second = await regions(served, BOXES)
    assert len(first.pop("id")) == 10
    assert first == {
        "from_name": "RectangleLabels",
        "to_name": "img",
        "type": "rectanglelabels",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "score": 0.9,
        "value": {"x": 0.0, "y": 0.0, "width": 50.0, "height": 50.0, "rotation": 0, "rectanglelabels": ["cat"]},
    }
    assert second["value"] == {"x": 25, "y": 25, "width": 75, "height": 75, "rotation": 0, "rectanglelabels": ["dog"]}


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["CAT"], ["CAT"]),
        (['value="Felis catus" predicted_values="kitten, cat"', "dog"], ["Felis catus", "dog"]),
        (['value="cat" alias="c"', 'value="d" alias="dog"'], ["c", "dog"]),
        (["dog", "horse"], ["dog"]),
    ],
)
async def test_names_of_labels(served: Rest, labels: Sequence[str], found: Sequence[str]) -> None:
    """Labels match in any case, by value, alias or predicted_values; results have the alias, else the value. What the
    configuration lacks is left out, and so is what the model lacks."""
    rows = await regions(served, config(control("RectangleLabels", *labels)))
    assert [row["value"]["rectanglelabels"] for row in rows] == [[name] for name in found]


async def test_thresholds(served: Rest) -> None:
    """Each control has its own threshold, although one model answers both."""
    strict = control("RectangleLabels", "cat", "dog", name="strict", more='model_score_threshold="0.7"')
    rows = await regions(served, config(strict, control("RectangleLabels", "cat", "dog", name="all")))
    assert [(row["from_name"], row["score"]) for row in rows] == [("strict", 0.9), ("all", 0.9), ("all", 0.6)]


async def test_brushes(served: Rest) -> None:
    """Masks of a semantic model, in the brush's encoding; with `model_name` those of a detector's instances."""
    (region,) = await regions(served, config(control("BrushLabels", "dog")), DOG)
    assert region["type"] == "brushlabels"
    assert region["value"].keys() == {"format", "rle", "brushlabels"}
    mask = decoded(bytes(region["value"]["rle"])).reshape(HEIGHT, WIDTH, 4)
    assert (mask == (np.arange(WIDTH) >= WIDTH // 2)[:, None] * 255).all()
    label_config = config(control("BrushLabels", "cat", "dog", more='model_name="fake_instances"'))
    rows = await regions(served, label_config)
    assert [(row["value"]["brushlabels"], row["score"]) for row in rows] == [(["cat"], 0.9), (["dog"], 0.6)]
    is_set = decoded(bytes(rows[0]["value"]["rle"])).reshape(HEIGHT, WIDTH, 4) > 0
    assert is_set[:32, :48].all()
    assert is_set.sum() == 32 * 48 * 4


async def test_polygons(served: Rest) -> None:
    """Outlines of instances in percent; without a detector with masks those of segments."""
    cat, _ = await regions(served, config(control("PolygonLabels", "cat", "dog")))
    assert cat["value"]["polygonlabels"] == ["cat"]
    assert sorted(cat["value"]["points"]) == [[0, 0], [0, 50], [50, 0], [50, 50]]
    label_config = config(control("PolygonLabels", "background", more='model_name="fake_segment"'))
    (background,) = await regions(served, label_config)
    assert sorted(background["value"]["points"]) == [[0, 0], [0, 100], [50, 0], [50, 100]]


async def test_choices(served: Rest) -> None:
    """The best of the choices among the model's five best labels, for the whole picture; several above a half, or the
    control's threshold."""
    (choice,) = await regions(served, config(control("Choices", "grey 9", "grey 8", "grey 200")), 7)
    assert (choice["value"], choice["score"]) == ({"choices": ["grey 8"]}, 0.25)
    assert "original_width" not in choice
    assert await regions(served, config(control("Choices", "grey 200")), 7) == []
    several = control("Choices", "grey 9", "grey 8", "grey 30", more='choice="multiple" model_score_threshold="0.1"')
    (choice,) = await regions(served, config(several), 7)
    assert choice["value"] == {"choices": ["grey 8", "grey 9"]}


async def test_several_controls_are_one_prediction(served: Rest) -> None:
    """All models answer for one picture, which is decoded once; a control that no model knows is left to annotators."""
    quality = control("Choices", "sharp", "blurred", name="quality")
    several = config(control("RectangleLabels", "cat"), control("BrushLabels", "cat"), quality)
    decodings = await served.count('convmlp_stage_duration_seconds_count{stage="decode",task="analyze"}')
    (prediction,) = await predict(served, several, encoded())
    assert [row["type"] for row in prediction["result"]] == ["rectanglelabels", "brushlabels"]
    scores = [row["score"] for row in prediction["result"]]
    assert prediction["score"] == pytest.approx(np.mean(scores))
    assert await served.count('convmlp_stage_duration_seconds_count{stage="decode",task="analyze"}') == decodings + 1


async def test_the_version_is_that_of_setup(served: Rest) -> None:
    """/setup names the models and their weights as predictions do: Label Studio compares them."""
    label_config = config(control("RectangleLabels", "cat"), control("Choices", "grey 7"))
    version = (await setup(served, label_config)).json()["model_version"]
    assert version == "fake_detect e3b0c442 + fake_classify e3b0c442"
    (prediction,) = await predict(served, label_config, encoded())
    assert prediction["model_version"] == version
    assert "fake_detect e3b0c442" in (await served.http.get(f"{PREFIX}/versions")).json()["versions"]


async def test_a_bad_task_costs_no_other(served: Rest) -> None:
    """In its place is its error, without the `result` of a prediction: Label Studio stores none, and asks again."""
    values = [encoded(), "bm8gcGljdHVyZQ==", f"data:image/png;base64,{encoded()}", 7, "https://example.org/cat.jpg"]
    asked = body(BOXES, *values)
    asked["tasks"].append({"id": 1, "data": {"text": "no picture"}})
    results = (await served.http.post(f"{PREFIX}/predict", json=asked)).json()["results"]
    assert ["result" in result for result in results] == [True, False, True, False, False, False]
    problems = [problem_of(json.dumps(result["error"]).encode()) for result in results if "error" in result]
    assert [problem["status"] for problem in problems] == [415, 400, 422, 400]
    assert "tasks[3].data.image is no string" in problems[1]["detail"]
    assert "fetch_urls" in problems[2]["detail"]
    assert "tasks[5].data has no 'image'" in problems[3]["detail"]


async def test_more_tasks_than_run_at_a_time(served: Rest) -> None:
    """Each has its own picture's answer, in its place."""
    results = await predict(served, BOXES, *[encoded(CAT + at % 2) for at in range(40)])
    labels = [result["result"][0]["value"]["rectanglelabels"][0] for result in results]
    assert labels == ["cat", "dog"] * 20


@pytest.mark.parametrize(
    ("label_config", "words"),
    [
        ("<View>", "not valid XML: no element found"),
        ("<View>&unknown;</View>", "not valid XML: undefined entity"),
        ('<!DOCTYPE View [<!ENTITY e "cat">]><View>&e;</View>', "has a document type"),
        ('<!DOCTYPE View SYSTEM "file:///etc/hostname"><View/>', "has a document type"),
        ("<a>" * 101 + "</a>" * 101, "more than 100 elements in each other"),
        (f"<View>{' ' * 2**20}</View>", "characters; at most 1,048,576 are read"),
        (config(*[control("Choices", "a", name=str(at)) for at in range(33)]), "more than 32 controls"),
        ("<View/>", "no control of a picture that is answered; expected one of RectangleLabels"),
        (config(control("KeyPointLabels", "nose")), "no control of a picture that is answered"),
        (config(control("RectangleLabels", "cat", more='model_skip="true"')), "no control of a picture"),
        (config(control("RectangleLabels", "cat"), image='<Text name="img" value="$text"/>'), "no control of a pic"),
        (
            config(control("RectangleLabels", "cat"), image='<Image name="img" valueList="$pages"/>'),
            "no control of a pic",
        ),
        (config(control("RectangleLabels", "horse")), "no served model knows a label of RectangleLabels 'Rect"),
        (config(control("RectangleLabels", "cat", more='model_score_threshold="2"')), "model_score_threshold '2'; exp"),
        (config(control("RectangleLabels", "cat", more='model_name="other"')), "there is no model 'other'"),
        (config(control("BrushLabels", "cat", more='model_name="fake_detect"')), "'fake_detect' cannot answer"),
    ],
)
async def test_label_configs_that_cannot_be_answered(served: Rest, label_config: str, words: str) -> None:
    """/setup refuses them, so that the project does not connect, and /predict does likewise."""
    for answered in (
        await setup(served, label_config),
        await served.http.post(f"{PREFIX}/predict", json=body(label_config, encoded())),
    ):
        assert answered.status_code in (400, 404)
        assert words in problem_of(answered.content)["detail"]


@pytest.mark.parametrize("path", ["setup", "predict", "webhook"])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"tasks": 1, "schema": 1, "action": 1}', b"\xff"])
async def test_bodies_of_another_form(served: Rest, path: str, content: bytes) -> None:
    """They are the caller's mistake, and the answer names what is wrong."""
    answered = await served.http.post(f"{PREFIX}/{path}", content=content)
    assert answered.status_code == 400
    assert "JSON" in problem_of(answered.content)["detail"]


async def test_events_and_training(served: Rest) -> None:
    """Label Studio's events are taken and ignored; that nothing is trained here is an error, not a success."""
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}, "project": {"id": 1}}
    assert (await served.http.post(f"{PREFIX}/webhook", json=event)).json()["status"] == "ignored"
    answered = await served.http.post(f"{PREFIX}/webhook", json={"action": "START_TRAINING", "project": {"id": 1}})
    assert answered.status_code == 422
    assert "does not train" in problem_of(answered.content)["detail"]


@pytest.mark.parametrize("path", ["", "/", "/health"])
async def test_health(served: Rest, path: str) -> None:
    """The service is up where models are ready."""
    assert (await served.http.get(PREFIX + path)).json() == {"status": "UP", "model_class": "ConvMLP Serving"}


@pytest.mark.settings(with_worker=False)
async def test_health_without_a_worker(fresh_rest: Rest) -> None:
    """Label Studio shows the backend as disconnected, and sends it no tasks."""
    assert (await fresh_rest.http.get(f"{PREFIX}/health")).status_code == 503
    assert (await setup(fresh_rest, BOXES)).status_code == 503


async def test_keys_and_rates(tmp_path: Path) -> None:
    """An API key is the password of the basic authentication that Label Studio offers. Each task and model counts as an
    image, and connecting counts as none."""
    key = "0123456789abcdef"
    (tmp_path / "keys").write_text(f"annotation {key}")
    async with open_rest(api_keys_file=tmp_path / "keys", rate_limit_per_s=0.01, rate_limit_burst=2) as rest:
        assert (await rest.http.get(f"{PREFIX}/health")).status_code == 401
        rest.http.auth = ("labelstudio", key)
        for _ in range(4):
            assert (await setup(rest, BOXES)).status_code == 200
        assert len(await predict(rest, BOXES, *[encoded()] * 3)) == 3
        answered = await rest.http.post(f"{PREFIX}/predict", json=body(BOXES, encoded()))
        assert answered.status_code == 429
        # Three images were admitted where two were: the third one's time is owed, and a hundred seconds for another.
        assert int(answered.headers["retry-after"]) > 100


async def test_deadlines(fresh_rest: Rest) -> None:
    """Where no task is answered in time the request fails, and its tasks that had to wait never reach the device."""
    runner = fresh_rest.worker.runner
    runner.unblocked.clear()
    headers = {"X-Request-Timeout-Ms": "500"}
    answered = await fresh_rest.http.post(f"{PREFIX}/predict", json=body(BOXES, *[encoded()] * 100), headers=headers)
    assert answered.status_code in (503, 504)
    runner.unblocked.set()
    assert len(await predict(fresh_rest, BOXES, encoded())) == 1
    assert sum(images for model, images in runner.batches if model == "fake_detect") < 50


TOKEN = "4f1c6e"


@pytest_asyncio.fixture(loop_scope="module")
async def label_studio() -> AsyncIterator[PictureSite]:
    """Label Studio's files."""
    async with open_site() as site:
        for path in ("/data/upload/1/cat.png", "/ls/data/upload/1/cat.png", "/tasks/10/presign/", "/data/local-files/"):
            site.answers[path] = sends(picture(CAT, WIDTH, HEIGHT))
        yield site


def open_fetching(*sites: PictureSite, **settings: Any) -> AbstractAsyncContextManager[Rest]:  # noqa: ANN401
    """A front-end that may fetch from sites on this host."""
    hosts = tuple(f"127.0.0.1:{site.port}" for site in sites)
    return open_rest(fetch_urls=hosts, fetch_private_networks=("127.0.0.0/8",), **settings)


def authorizations(site: PictureSite) -> list[str | None]:
    """The header Authorization of each request that came."""
    found = [re.search(r"(?im)^authorization: (.*?)\r?$", head) for head in site.heads]
    return [match and match[1] for match in found]


@pytest.mark.parametrize(
    ("base", "value", "target"),
    [
        ("", "/data/upload/1/cat.png", "/data/upload/1/cat.png"),
        ("/", "upload/1/cat.png", "/data/upload/1/cat.png"),
        ("/ls", "/ls/data/upload/1/cat.png", "/ls/data/upload/1/cat.png"),
        ("", "/data/local-files/?d=a%20b/cat.png", "/data/local-files/?d=a%20b/cat.png"),
        ("", "s3://bucket/cat.png", "/tasks/10/presign/?fileuri=czM6Ly9idWNrZXQvY2F0LnBuZw=="),
    ],
)
async def test_label_studios_own_files(label_studio: PictureSite, base: str, value: str, target: str) -> None:
    """They are fetched from the address that /setup had, with its token."""
    async with open_fetching(label_studio) as rest:
        await setup(rest, BOXES, hostname=label_studio.url(base), access_token=TOKEN)
        (prediction,) = await predict(rest, BOXES, value)
    assert len(prediction["result"]) == 2
    assert [head.split()[1] for head in label_studio.heads] == [target]
    assert authorizations(label_studio) == [f"Token {TOKEN}"]


async def test_the_token_goes_to_label_studio_alone(label_studio: PictureSite) -> None:
    """A URL in it gets the token, a URL of another host gets none, and neither does an address that /setup had not."""
    async with open_site() as other, open_fetching(label_studio, other) as rest:
        other.answers["/data/upload/1/cat.png"] = sends(picture(CAT))
        await setup(rest, BOXES, hostname=label_studio.url(""), access_token=f"{TOKEN}.{TOKEN}.{TOKEN}")
        await predict(rest, BOXES, label_studio.url("/data/upload/1/cat.png"), other.url("/data/upload/1/cat.png"))
        asked = body(BOXES, "/data/upload/1/cat.png")
        asked["params"]["hostname"] = other.url("")
        (prediction,) = (await rest.http.post(f"{PREFIX}/predict", json=asked)).json()["results"]
        assert len(prediction["result"]) == 2
    assert authorizations(label_studio) == [f"Bearer {TOKEN}.{TOKEN}.{TOKEN}"]
    assert authorizations(other) == [None, None]


async def test_no_caller_uses_the_token_of_another(label_studio: PictureSite, tmp_path: Path) -> None:
    """The address and the token are those of one caller's project: others, and other projects, have none."""
    keys = ("0123456789abcdef", "fedcba9876543210")
    (tmp_path / "keys").write_text("\n".join(f"caller{at} {key}" for at, key in enumerate(keys)))
    async with open_fetching(label_studio, api_keys_file=tmp_path / "keys") as rest:
        rest.http.headers["authorization"] = f"Bearer {keys[0]}"
        await setup(rest, BOXES, hostname=label_studio.url(""), access_token=TOKEN)
        asked = body(BOXES, "/data/upload/1/cat.png")
        answers = [
            (await rest.http.post(f"{PREFIX}/predict", json=asked | changes, headers=headers)).json()["results"][0]
            for changes, headers in (
                ({}, {}),
                ({"project": "2.1796041601"}, {}),
                ({}, {"authorization": f"Bearer {keys[1]}"}),
            )
        ]
    assert ["result" in answer for answer in answers] == [True, False, False]
    assert all("whose address is not known here" in answer["error"]["detail"] for answer in answers[1:])
    assert len(label_studio.heads) == 1


@pytest.mark.parametrize("hostname", ["localhost:8080", "file:///etc", "http://", "http://" + "a" * 2048])
async def test_addresses_that_are_none(served: Rest, hostname: str) -> None:
    """/setup refuses them."""
    answered = await setup(served, BOXES, hostname=hostname)
    assert answered.status_code == 400
    assert "expected Label Studio's URL" in problem_of(answered.content)["detail"]


async def test_hosts_are_bounded() -> None:
    """The project that was connected longest ago is forgotten."""
    hosts = LabelStudioHosts()
    for at in range(MAX_HOSTS + 1):
        hosts.put("caller", str(at), LabelStudioHost(f"http://host{at}", TOKEN))
    assert hosts.get("caller", "0") is None
    assert hosts.get("caller", "1") == LabelStudioHost("http://host1", TOKEN)


async def test_pictures_are_released_with_their_tasks(label_studio: PictureSite) -> None:
    """Tasks whose pictures together have more bytes than a request may hold are all answered."""
    large = picture(CAT, 400, 300, "BMP")
    label_studio.answers["/large.bmp"] = sends(large)
    async with open_fetching(label_studio, max_request_bytes=10 * len(large)) as rest:
        results = await predict(rest, BOXES, *[label_studio.url("/large.bmp")] * 30)
        assert all("result" in result for result in results)
        assert await rest.count("convmlp_in_flight_requests") == 0


@pytest.mark.parametrize("tasks", [0, 300, 20_001])
async def test_any_number_of_tasks(served: Rest, tasks: int) -> None:
    """None is an empty answer, many bad ones are as many errors, and too many are refused before any is tried."""
    asked = body(BOXES) | {"tasks": [{"data": {}}] * tasks}
    answered = await served.http.post(f"{PREFIX}/predict", json=asked)
    if tasks > 20_000:
        assert answered.status_code == 413
        assert "has 20001 tasks; send at most 20000" in problem_of(answered.content)["detail"]
        return
    results = answered.json()["results"]
    assert [result["error"]["instance"].rpartition("-")[2] for result in results] == [str(at) for at in range(tasks)]
