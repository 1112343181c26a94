"""Every form that a body may have, and every way to break one, over real connections."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from tests.service.frontend.rest_server import Rest, open_rest, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOUNDARY = "frontier"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
JSON = {"Content-Type": "application/json"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def part(data: bytes, name: str = "image", extra: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n{extra}\r\n'
    return head.encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def greys(response: httpx2.Response) -> list[int]:
    """The class of each result, which is the picture's grey level."""
    assert response.status_code == 200, response.text
    return [result["labels"][0]["index"] for result in response.json()["results"]]


def refusal(response: httpx2.Response) -> tuple[int, str]:
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, problem["detail"]


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "image/png",
        "image/jpeg",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "application/json",
        "text/plain; charset=utf-8",
        "not a media type",
    ],
)
async def test_raw_bytes_with_any_content_type(rest: Rest, content_type: str | None) -> None:
    """An image is detected from its bytes; the header, curl's default among them, does not matter."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert greys(await rest.http.post("/classify", content=picture(42), headers=headers)) == [42]


async def test_raw_bytes_in_chunks(rest: Rest) -> None:
    """A body of unknown length, sent in pieces, is read to its end."""

    async def pieces() -> AsyncIterator[bytes]:
        for byte in picture(43):
            yield bytes([byte])

    assert greys(await rest.http.post("/classify", content=pieces())) == [43]


@pytest.mark.parametrize("name", ["image", "file"])
async def test_form_with_one_part(rest: Rest, name: str) -> None:
    """A form's image may be called `image` or `file`."""
    response = await rest.http.post("/classify", files={name: ("a.png", picture(44), "image/png")})
    assert greys(response) == [44]


async def test_form_with_several_parts(rest: Rest) -> None:
    """Several parts are answered in upload order, also when both names are used."""
    files = [("image", picture(30)), ("file", picture(10)), ("image", picture(20))]
    assert greys(await rest.http.post("/classify", files=files)) == [30, 10, 20]


async def test_form_part_without_filename_and_with_preamble(rest: Rest) -> None:
    """What RFC 7578 and 2046 leave open does not matter: no filename, preamble line breaks, epilogue, padding."""
    body = (
        f"\r\n--{BOUNDARY}\r\nCONTENT-DISPOSITION: form-data; name=image\r\n\r\n".encode()
        + picture(45)
        + f"\r\n--{BOUNDARY}--\r\nepilogue".encode()
    )
    assert greys(await rest.http.post("/classify", content=body, headers=FORM)) == [45]


async def test_form_in_single_bytes(rest: Rest) -> None:
    """Where the network cuts a form does not matter, even within its boundaries."""
    body = part(picture(46)) + part(picture(47)) + END

    async def pieces() -> AsyncIterator[bytes]:
        for byte in body:
            yield bytes([byte])

    assert greys(await rest.http.post("/classify", content=pieces(), headers=FORM)) == [46, 47]


async def test_json_with_one_image(rest: Rest) -> None:
    """`image` is base64 of one picture."""
    assert greys(await rest.http.post("/classify", json={"image": b64(picture(48))})) == [48]


async def test_json_with_several_images(rest: Rest) -> None:
    """`images` are answered in their order."""
    images = [b64(picture(grey)) for grey in (9, 8, 7)]
    assert greys(await rest.http.post("/classify", json={"images": images})) == [9, 8, 7]


@pytest.mark.parametrize(
    "text",
    [
        "data:image/png;base64," + b64(picture(50)),
        "DATA:;BASE64," + b64(picture(50)),
        base64.encodebytes(picture(50)).decode(),
    ],
)
async def test_json_takes_data_urls_and_line_breaks(rest: Rest, text: str) -> None:
    """A data: URL, as browsers make it, and base64 in lines, as mail does, are both understood."""
    assert greys(await rest.http.post("/classify", json={"image": text})) == [50]


@pytest.mark.parametrize(
    ("document", "word"),
    [
        (b"{", "JSON"),
        (b'{"image": "abc', "JSON"),
        (b'{"image": "\xff"}', "JSON"),
        (b"[]", "object"),
        (b"null", "object"),
        (b"[" * 100_000, "JSON"),
        (b"{}", "`image` or `images`"),
        (b'{"image": null}', "`image` or `images`"),
        (b'{"image": 5}', "image"),
        (b'{"images": "abc"}', "images"),
        (b'{"images": []}', "at least one"),
        (b'{"images": [1]}', "images"),
        (b'{"image": "", "images": [""]}', "`image` or `images`"),
        (b'{"picture": "abc"}', "picture"),
        (b'{"image": "not base64!"}', "base64"),
        (b'{"image": "QUJ"}', "base64"),
        (b'{"image": "QUJ\\u00e9"}', "base64"),
        (b'{"image": "data:image/png,abc"}', ";base64,"),
    ],
)
async def test_broken_json(rest: Rest, document: bytes, word: str) -> None:
    """A JSON body that cannot be understood is a 400 that names the fault."""
    status, detail = refusal(await rest.http.post("/classify", content=document, headers=JSON))
    assert status == 400
    assert word in detail
    assert len(detail) < 500


async def test_empty_base64_is_an_empty_image(rest: Rest) -> None:
    """Valid base64 of no bytes is an image without bytes."""
    status, detail = refusal(await rest.http.post("/classify", json={"image": ""}))
    assert (status, "empty" in detail) == (400, True)


@pytest.mark.parametrize(
    ("headers", "body", "word"),
    [
        ({"Content-Type": "multipart/form-data"}, part(picture()) + END, "boundary"),
        ({"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}, part(picture()) + END, "boundary"),
        ({"Content-Type": "multipart/form-data; boundary=other"}, part(picture()) + END, "broken"),
        (FORM, b"", "closing boundary"),
        (FORM, picture(), "broken"),
        (FORM, END, "no part"),
        (FORM, part(picture()), "closing boundary"),
        (FORM, part(picture())[:-40], "closing boundary"),
        (FORM, part(picture(), name="picture") + END, "'picture'"),
        (FORM, part(picture()) + part(b"3", name="top_k") + END, "query string"),
        (FORM, f"--{BOUNDARY}\r\n\r\nbytes\r\n".encode() + END, "no name"),
        (FORM, f"--{BOUNDARY}\r\nContent-Disposition: form-data\r\n\r\nbytes\r\n".encode() + END, "no name"),
        (FORM, f"--{BOUNDARY}\r\nno colon\r\n\r\nbytes\r\n".encode() + END, "broken"),
        (FORM, part(picture(), extra=f"X-Long: {'x' * 10_000}\r\n") + END, "broken"),
        (FORM, part(picture(), extra="X-Many: x\r\n" * 100) + END, "broken"),
    ],
)
async def test_broken_form(rest: Rest, headers: dict[str, str], body: bytes, word: str) -> None:
    """A form that breaks its format, ends early or has foreign parts is a 400 that names the fault."""
    status, detail = refusal(await rest.http.post("/classify", content=body, headers=headers))
    assert status == 400
    assert word in detail


@pytest.mark.parametrize("form", ["multipart", "json"])
@pytest.mark.settings(max_images=3)
async def test_too_many_images(fresh_rest: Rest, form: str) -> None:
    """As many images as the limit are answered; one more is a 413."""
    for count, status in ((3, 200), (4, 413)):
        images = [picture(grey) for grey in range(count)]
        sent: dict[str, Any] = (
            {"files": [("image", image) for image in images]}
            if form == "multipart"
            else {"json": {"images": [b64(image) for image in images]}}
        )
        assert (await fresh_rest.http.post("/classify", **sent)).status_code == status


async def test_bad_images_among_good_ones(rest: Rest) -> None:
    """Among several images each bad one gets its own error in its place, the others their answers, in order."""
    good, broken = b64(picture(1)), b64(picture()[:50])
    images = [good, broken, "!", b64(b"%PDF"), good]
    response = await rest.http.post("/classify", json={"images": images}, headers={"X-Request-Id": "r"})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["error"]["type"] if "error" in result else "ok" for result in results] == [
        "ok",
        "/problems/image-undecodable",
        "/problems/bad-request",
        "/problems/unsupported-format",
        "ok",
    ]
    assert [list(result) for result in results if "error" in result] == [["error"]] * 3
    assert results[3]["error"] | {"detail": "", "error": ""} == {
        "type": "/problems/unsupported-format",
        "title": "The image format is not supported",
        "status": 415,
        "detail": "",
        "instance": "/classify#r-3",
        "error": "",
    }


async def test_only_bad_images_are_errors_in_their_places(rest: Rest) -> None:
    """Where all of several images are bad the request itself is still answered."""
    response = await rest.http.post("/classify", files=[("image", b"a"), ("image", b"b")])
    assert response.status_code == 200
    assert ["error" in result for result in response.json()["results"]] == [True, True]


async def test_a_failing_service_is_not_hidden_behind_several_images(fresh_rest: Rest) -> None:
    """Where the service could answer none of several images the response is its error, not a 200."""
    fresh_rest.worker.runner.poison = 66
    response = await fresh_rest.http.post("/classify", files=[("image", picture(66)), ("image", picture(66))])
    assert response.status_code == 500


@pytest.mark.settings(max_request_bytes=100000)
async def test_long_body_is_refused_before_it_came(fresh_rest: Rest) -> None:
    """Content-Length alone is enough to refuse, and the answer arrives although the body was never read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", fresh_rest.port)
    writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nbegin")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head.lower()
    writer.close()


@pytest.mark.settings(max_request_bytes=100000)
async def test_long_body_of_unknown_length_is_refused_as_it_comes(fresh_rest: Rest) -> None:
    """A chunked body is counted, and refused as soon as it is too long; the sender still gets the answer."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield bytes(10_000)

    response = await fresh_rest.http.post("/classify", content=pieces())
    assert refusal(response)[0] == 413


async def test_slow_body_meets_the_deadline(rest: Rest) -> None:
    """A body that does not end is waited for no longer than the caller's deadline."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rest.port)
    writer.write(b"POST /classify HTTP/1.1\r\nHost: x\r\nX-Request-Timeout-Ms: 50\r\nContent-Length: 1000\r\n\r\nbegin")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 504 ")
    writer.close()


async def test_bodies_beyond_the_memory_budget_are_refused() -> None:
    """All bodies together have a bound; the one beyond it is refused with Retry-After, and room is given back."""
    body = picture()
    async with open_rest(max_in_flight_bytes=len(body) + 100) as rest:
        rest.worker.runner.unblocked.clear()
        held = asyncio.create_task(rest.http.post("/classify", content=body))
        await rest.until("convmlp_in_flight_requests", 1)
        refused = await rest.http.post("/classify", content=body)
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        rest.worker.runner.unblocked.set()
        assert (await held).status_code == 200
        assert (await rest.http.post("/classify", content=body)).status_code == 200


@pytest.mark.settings(max_request_bytes=1000)
async def test_expect_100_continue_is_refused_without_the_body(fresh_rest: Rest) -> None:
    """Who asks before sending a large body is refused at once and need not send it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", fresh_rest.port)
    writer.write(b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_answers_are_in_upload_order(rest: Rest) -> None:
    """The answer to a single image has the contract's shape, and no other member."""
    response = await rest.http.post("/classify?top_k=1", content=picture(12, width=50, height=40))
    assert json.loads(response.content) == {
        "model": "fake_classify",
        "task": "classify",
        "results": [
            {"image": {"width": 50, "height": 40}, "labels": [{"label": "grey 12", "index": 12, "score": 0.5}]}
        ],
    }
