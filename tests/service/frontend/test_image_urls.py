"""Pictures by URL, over both transports and each API that takes them."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest
import pytest_asyncio

from convmlp.v1 import vision_pb2 as pb
from convmlp_client import AsyncClient, FetchFailed, ImageUrl
from tests.service.frontend.both_transports import PairAtWork, open_pair
from tests.service.frontend.grpc_server import reason, refusal, rich
from tests.service.frontend.picture_site import PictureSite, drips, open_site, sends
from tests.service.frontend.rest_server import picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

GREY = 70


@dataclass(frozen=True)
class Fetching:
    """Front-ends that may fetch from a site on this host, and the site."""

    pair: PairAtWork
    site: PictureSite


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fetching() -> AsyncIterator[Fetching]:
    async with open_site() as site:
        site.answers |= {
            "/picture": sends(picture(GREY)),
            "/page": sends(b"<!doctype html><title>Sign in</title>"),
            "/empty": sends(b""),
            "/missing": sends(b"", "HTTP/1.1 404 Not Found"),
            "/slow": drips(b"x", pause_s=0.01),
        }
        settings = {"fetch_urls": [f"127.0.0.1:{site.port}"], "fetch_private_networks": ["127.0.0.0/8"]}
        async with open_pair(**settings, fetch_timeout_ms=2000) as pair:
            yield Fetching(pair, site)


async def test_a_url_stands_for_its_picture(fetching: Fetching) -> None:
    """The answer is that of the picture's bytes, wherever a picture is given as text, and in gRPC's own field."""
    http, stub, url = fetching.pair.http, fetching.pair.rpc.stub, fetching.site.url("/picture")
    direct = (await http.post("/classify", content=picture(GREY))).json()
    for answer in (
        await http.post("/classify", json={"image": url}),
        await http.post("/classify", json={"images": [url]}),
        await http.post("/classify", content=url),
        await http.post("/classify", files=[("image", (None, url))]),
    ):
        assert answer.json() == direct
    for path, members in (("/embed", {"embedding"}), ("/analyze", {"answers"}), ("/segment", {"segments"})):
        answer = await http.post(path, json={"image": url})
        assert members < set(answer.json()["results"][0]), answer.text
    assert (await http.post("/compat/huggingface/classify", json={"inputs": url})).json()[0]["label"]
    drawn = await http.post("/classify", json={"image": url}, headers={"Accept": "image/png"})
    assert drawn.content.startswith(b"\x89PNG")
    reply = await stub.Classify(pb.ClassifyRequest(image_url=url))
    assert reply.labels[0].index == GREY
    analysis = await stub.Analyze(pb.AnalyzeRequest(image_url=url))
    assert len(analysis.answers) == 3
    stream = stub.ClassifyStream(iter([pb.ClassifyRequest(id="one", image_url=url)]))
    assert [(reply.id, reply.labels[0].index) async for reply in stream] == [("one", GREY)]


async def test_apis_of_others_take_urls(fetching: Fetching) -> None:
    """Roboflow's parameter `image`, with GET and POST, and the image of DeepStack's form, may be a URL."""
    http, url = fetching.pair.http, fetching.site.url("/picture")
    for method in ("GET", "POST"):
        answer = await http.request(method, "/compat/roboflow/fake_detect/1", params={"image": url})
        assert len(answer.json()["predictions"]) == 2, answer.text
    answer = await http.post("/compat/deepstack/v1/vision/detection", files=[("image", (None, url))])
    assert answer.json()["count"] == 2, answer.text
    answer = await http.post("/compat/roboflow/fake_detect/1", params={"image": fetching.site.url("/missing")})
    assert (answer.status_code, answer.json()["message"]) == (502, answer.json()["detail"])


async def test_the_client_sends_urls(fetching: Fetching) -> None:
    """An `ImageUrl` is answered over both transports as its picture is, also in a stream; and it cannot be drawn on."""
    image = ImageUrl(fetching.site.url("/picture"))
    for address in (str(fetching.pair.http.base_url), f"grpc://127.0.0.1:{fetching.pair.rpc.port}"):
        async with AsyncClient(address, retries=0) as client:
            result = await client.classify(image)
            assert result.to_dict() == (await client.classify(picture(GREY))).to_dict()
            assert (await client.analyze(image)).answers.keys() == {"classify", "detect", "segment"}
            outcomes = [outcome async for outcome in client.detect_many([image, picture(GREY)])]
            assert outcomes[0].result.to_dict() == outcomes[1].result.to_dict()
            with pytest.raises(FetchFailed, match="404"):
                await client.embed(ImageUrl(fetching.site.url("/missing")))
    with pytest.raises(ValueError, match="download"):
        outcomes[0].result.draw(image)
    with pytest.raises(ValueError, match="https://HOST"):
        ImageUrl("cat.jpg")


async def test_neighbours_keep_their_answers(fetching: Fetching) -> None:
    """Each URL that gives no picture is an error in its own place; the request's bytes are released at its end."""
    site = fetching.site
    urls = [*map(site.url, ("/missing", "/page", "/empty", "/slow")), "https://example.org/x", site.url("/picture")]
    images = [*urls, base64.b64encode(picture(GREY)).decode()]
    response = await fetching.pair.http.post("/classify", json={"images": images})
    results = response.json()["results"]
    found = [(one["error"]["status"], one["error"]["type"]) for one in results[:5]]
    assert found == [
        (502, "/problems/fetch-failed"),
        (415, "/problems/unsupported-format"),
        (400, "/problems/image-undecodable"),
        (504, "/problems/fetch-timeout"),
        (422, "/problems/url-refused"),
    ]
    assert "an HTML page" in results[1]["error"]["detail"]
    assert [one["labels"][0]["index"] for one in results[5:]] == [GREY, GREY]
    metrics = (await fetching.pair.http.get("/metrics")).text
    for outcome in ("ok", "fetch-failed", "fetch-timeout", "url-refused"):
        assert f'convmlp_fetches_total{{outcome="{outcome}"}}' in metrics


@pytest.mark.parametrize(
    ("path", "status", "code", "name"),
    [
        ("/missing", 502, grpc.StatusCode.FAILED_PRECONDITION, "FETCH_FAILED"),
        ("/slow", 504, grpc.StatusCode.DEADLINE_EXCEEDED, "FETCH_TIMEOUT"),
        ("/page", 415, grpc.StatusCode.INVALID_ARGUMENT, "UNSUPPORTED_FORMAT"),
    ],
)
async def test_errors_of_one_picture(
    fetching: Fetching, path: str, status: int, code: grpc.StatusCode, name: str
) -> None:
    """The error of the only picture is the request's, with its status and name over both transports."""
    url = fetching.site.url(path)
    response = await fetching.pair.http.post("/classify", json={"image": url})
    assert response.status_code == status, response.text
    error = await refusal(fetching.pair.rpc.stub.Classify(pb.ClassifyRequest(image_url=url)))
    assert (error.code(), reason(rich(error))) == (code, name)


async def test_a_picture_and_a_url(fetching: Fetching) -> None:
    """A message with both is refused: which one is meant is not guessed."""
    message = pb.ClassifyRequest(image=picture(GREY), image_url=fetching.site.url("/picture"))
    error = await refusal(fetching.pair.rpc.stub.Classify(message))
    assert (error.code(), reason(rich(error))) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_PARAMETER")
