"""Bodies that are text, as people and programs send them: answered where that is unambiguous, else named."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.service.frontend.rest_server import Rest, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

BASE64 = base64.b64encode(picture(40)).decode()
JPEG_URL = "data:image/jpeg;base64," + base64.b64encode(picture(40, form="JPEG")).decode()
JSON = json.dumps({"image": BASE64})
BOM = "\ufeff"
CONTENT_TYPES = [
    None,
    "application/x-www-form-urlencoded",
    "text/plain; charset=utf-8",
    "application/json",
    "application/octet-stream",
    "image/jpeg",
]
TEXTS = {
    "JSON": JSON,
    "JSON behind a byte order mark": BOM + JSON,
    "JSON behind white space": "\r\n " + JSON,
    "JSON behind kilobytes of white space": BOM + "\n  " * 20_000 + JSON,
    "base64 behind kilobytes of white space": " " * 60_000 + BASE64,
    "base64": BASE64,
    "base64 behind a byte order mark": BOM + BASE64,
    "base64 in lines": base64.encodebytes(picture(40)).decode(),
    "a data: URL": JPEG_URL,
    "a data: URL behind white space": f"\n{JPEG_URL}\n",
}


def level(response: Any) -> int:  # noqa: ANN401
    """The class of the only result, which is the picture's grey level."""
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    index: int = result["labels"][0]["index"]
    return index


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
async def test_text_is_answered_with_any_content_type(rest: Rest, text: str, content_type: str | None) -> None:
    """JSON, base64 and data: URLs are recognised by the body itself, as pictures are."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert level(await rest.http.post("/classify", content=text.encode(), headers=headers)) == 40


async def test_several_images_in_json_without_a_content_type(rest: Rest) -> None:
    """`images` are read as well."""
    body = json.dumps({"images": [BASE64, JPEG_URL]}).encode()
    response = await rest.http.post("/classify", content=body)
    assert len(response.json()["results"]) == 2


async def test_large_text(rest: Rest) -> None:
    """Text of megabytes is decoded as text of kilobytes is."""
    data = picture(40) + bytes(3 * 2**20)
    text = base64.b64encode(data)
    assert level(await rest.http.post("/classify", content=text)) == 40
    assert level(await rest.http.post("/classify", content=b'{"image": "' + text + b'"}')) == 40


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"),
    [
        (b"https://example.org/cat.jpg", "text/plain", 422, "this service does not fetch pictures by URL: download"),
        (
            b"cat.jpg",
            "application/x-www-form-urlencoded",
            415,
            "the name of a file, not a picture; send the file's bytes",
        ),
        (b"image=AAAA", "application/x-www-form-urlencoded", 415, "a URL-encoded form"),
        (b"<!doctype html><title>Not found</title>", "text/html", 415, "an HTML page"),
        (b"", "application/x-www-form-urlencoded", 400, "the body is empty"),
        (b"", "text/plain", 400, "the body is empty"),
        (b" \r\n", "text/plain", 415, "not supported"),
        (b"hello", "text/plain", 415, "not supported"),
        (b'{"image": ', None, 400, "not valid JSON"),
        (b"[1, 2]", None, 415, 'the JSON object {"image": BASE64}'),
        (b'"/9j/4AAQ"', None, 415, 'the JSON object {"image": BASE64}'),
        (picture(40).hex().encode(), None, 415, "hexadecimal text, not a picture; decode it"),
        (b"[1, 2]", "application/json", 400, "Expected `object`"),
        (b"data:image/png,%89PNG", None, 400, "the image is a data: URL without `;base64,`"),
        (BASE64.encode()[:-3], None, 400, "the image is not valid base64"),
        (b"ab-_" * 20, None, 400, "the standard alphabet"),
        (b"\xff\xfe" + JSON.encode("utf-16-le"), "application/json", 415, "UTF-16 text"),
    ],
)
async def test_other_text_is_named(rest: Rest, body: bytes, content_type: str | None, status: int, words: str) -> None:
    """The error names what came, and what to send."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await rest.http.post("/classify", content=body, headers=headers)
    assert (response.status_code, words in response.json()["detail"]) == (status, True), response.text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("cat.jpg", "is the name of a file, not base64 of a picture; send base64 of the picture's bytes"),
        (picture(40).hex(), "is hexadecimal text, not base64 of a picture; send base64"),
        ("<html><body>Not found", "is an HTML page"),
        ('{"b64": "AAAA"}', "is JSON"),
        ("data:text/html;base64,https://x", "not base64"),
        ("not base64!", "is not valid base64"),
    ],
)
async def test_values_in_json_are_named(rest: Rest, value: str, words: str) -> None:
    """Each API that takes base64 in JSON names what stands there instead."""
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [value]}
    for path, document, place in (
        ("/classify", {"image": value}, "the JSON body's `image`"),
        ("/compat/huggingface/classify", {"inputs": value}, "the JSON body's `inputs`"),
        ("/v2/models/fake_classify/infer", {"inputs": [tensor]}, "input 'image': element 0"),
    ):
        response = await rest.http.post(path, json=document)
        assert response.status_code == 400
        assert response.json()["detail"].startswith(place)
        assert words in response.json()["detail"]


async def test_a_url_in_json_is_named(rest: Rest) -> None:
    """A URL in a picture's place needs the setting; a field for it, which other services have, is unknown here."""
    url = "https://example.org/cat.jpg"
    for path, document in (("/classify", {"image": url}), ("/compat/huggingface/classify", {"inputs": url})):
        response = await rest.http.post(path, json=document)
        assert response.status_code == 422
        assert "the setting fetch_urls" in response.json()["detail"]
    for path in ("/classify", "/compat/huggingface/classify"):
        response = await rest.http.post(path, json={"url": "https://example.org/cat.jpg"})
        assert response.status_code == 400
        assert "unknown field `url`" in response.json()["detail"]


@pytest.mark.parametrize("text", [BASE64, JPEG_URL], ids=["base64", "data: URL"])
async def test_text_in_a_form_is_answered(rest: Rest, text: str) -> None:
    """A form's value may be base64 or a data: URL, as from a canvas."""
    response = await rest.http.post("/classify", files=[("image", (None, text))])
    assert level(response) == 40


async def test_a_path_in_a_form_is_named(rest: Rest) -> None:
    """`curl -F image=cat.jpg`, without @, sends the name of the file."""
    response = await rest.http.post("/classify", files=[("image", (None, "cat.jpg"))])
    assert response.status_code == 415
    assert "the name of a file" in response.json()["detail"]
    assert "@FILE" in response.json()["detail"]


async def test_text_among_the_images_of_a_form_costs_no_neighbour(rest: Rest) -> None:
    """Each part is read by itself."""
    parts = ["cat.jpg", BASE64, "https://example.org/cat.jpg", "data:,cat"]
    response = await rest.http.post("/classify", files=[("image", (None, text)) for text in parts])
    results = response.json()["results"]
    assert [result.get("error", {}).get("status") for result in results] == [415, None, 422, 400]


async def test_curl_without_data_binary_is_named(rest: Rest) -> None:
    """`curl -d @cat.jpg` drops line breaks and zeros; the error names the flag that keeps them."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for form in ("JPEG", "PNG"):
        data = picture(40, width=400, height=300, form=form) + bytes(range(1, 256)) * 10
        stripped = data.translate(None, b"\r\n\0")
        response = await rest.http.post("/classify", content=stripped, headers=headers)
        assert response.status_code == 400
        assert "--data-binary" in response.json()["detail"]


@pytest.mark.parametrize("text", TEXTS.values(), ids=list(TEXTS))
async def test_hugging_face(rest: Rest, text: str) -> None:
    """The same texts are answered for Hugging Face's clients, with their name of the field."""
    body = text.replace('"image"', '"inputs"').encode()
    response = await rest.http.post("/compat/huggingface/classify", content=body)
    assert response.status_code == 200, response.text
    assert response.json()[0]["label"] == "grey 40"


async def test_elements_of_a_tensor_are_named(rest: Rest) -> None:
    """An element of BYTES is a picture's bytes, not text."""
    for text, words in ((JSON, "this is JSON"), (BASE64, "this is base64 text"), ("cat.jpg", "the name of a file")):
        headers = {"Inference-Header-Content-Length": "0"}
        response = await rest.http.post("/v2/models/fake_classify/infer", content=text.encode(), headers=headers)
        assert (response.status_code, words in response.json()["detail"]) == (415, True)


async def test_json_of_a_tensor_behind_a_byte_order_mark(rest: Rest) -> None:
    """The Open Inference Protocol's JSON may have one, too."""
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}
    body = (BOM + json.dumps({"inputs": [tensor]})).encode()
    response = await rest.http.post("/v2/models/fake_classify/infer", content=body)
    assert response.status_code == 200, response.text
