"""Compressed request bodies, over real connections and on every path that takes a body."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from model.errors import ImageTooLarge
from service.errors import BadRequest, UnsupportedEncoding
from service.frontend.http.content_encoding import MAX_MEMBERS, BodyDecoder, decoder_of
from tests.service.frontend.rest_server import Rest, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON_BODY = json.dumps({"image": base64.b64encode(picture(40)).decode()}).encode()
TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(picture(40)).decode()]}
EMPTY_MEMBER = gzip.compress(b"", mtime=0)


def raw_deflate(data: bytes) -> bytes:
    """Without the header of zlib's format, as some clients send `deflate`."""
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def twice(data: bytes) -> bytes:
    return gzip.compress(zlib.compress(data))


def in_members(data: bytes) -> bytes:
    """As `cat a.gz b.gz` and bgzip write it."""
    return b"".join(gzip.compress(data[at : at + 50]) for at in range(0, len(data), 50)) + EMPTY_MEMBER


@pytest.mark.parametrize(
    ("coding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("gzip", in_members),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("deflate, gzip", twice),
        ("identity,, deflate ,GZIP", twice),
        ("identity", bytes),
        ("", bytes),
    ],
)
@pytest.mark.parametrize("in_single_bytes", [False, True])
async def test_codings(rest: Rest, coding: str, encode: Callable[[bytes], bytes], in_single_bytes: bool) -> None:
    """Each coding, and several in their order, is decoded, wherever the network cuts the body."""
    body = encode(picture(40))

    async def pieces() -> AsyncIterator[bytes]:
        for byte in body:
            yield bytes([byte])

    content = pieces() if in_single_bytes else body
    response = await rest.http.post("/classify", content=content, headers={"Content-Encoding": coding})
    assert response.status_code == 200, response.text
    assert response.json()["results"][0]["labels"][0]["index"] == 40


async def test_codings_in_two_header_lines(rest: Rest) -> None:
    """Two lines of the header mean the same as one line with a comma (RFC 9110, section 5.3)."""
    headers = [("Content-Encoding", "deflate"), ("Content-Encoding", "gzip")]
    response = await rest.http.post("/classify", content=twice(picture(40)), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "content_type"),
    [
        ("/classify", picture(40), "image/png"),
        ("/classify", JSON_BODY, "application/json"),
        (
            "/classify",
            b'--f\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + picture(40) + b"\r\n--f--\r\n",
            "multipart/form-data; boundary=f",
        ),
        ("/detect", picture(40), "application/octet-stream"),
        ("/segment", picture(40), "application/octet-stream"),
        ("/compat/huggingface/classify", picture(40), "image/png"),
        ("/compat/huggingface/classify", JSON_BODY.replace(b"image", b"inputs"), "application/json"),
        ("/v2/models/fake_classify/infer", json.dumps({"inputs": [TENSOR]}).encode(), "application/json"),
        ("/v2/repository/index", b'{"ready": true}', "application/json"),
    ],
)
async def test_every_path_decodes(rest: Rest, path: str, body: bytes, content_type: str) -> None:
    """Each path that takes a body answers a compressed one as it answers the same body without compression."""
    headers = {"Content-Type": content_type, "X-Request-Id": "same"}
    plain = await rest.http.post(path, content=body, headers=headers)
    response = await rest.http.post(path, content=gzip.compress(body), headers={**headers, "Content-Encoding": "gzip"})
    assert plain.status_code == 200, plain.text
    assert (response.status_code, response.content) == (200, plain.content)


@pytest.mark.parametrize("encode", [gzip.compress, zlib.compress, raw_deflate])
async def test_large_bodies(encode: Callable[[bytes], bytes]) -> None:
    """Megabytes come out as they went in, whether or not compression made them small."""
    noise = np.random.default_rng(3).integers(0, 256, 3 * 2**20, np.uint8).tobytes()
    for data in (noise, bytes(10 * 2**20), b""):
        taken: list[int] = []
        decoder = decoder_of(["gzip" if encode is gzip.compress else "deflate"], 2**24, taken.append)
        assert decoder is not None
        body = encode(data)
        decoded: list[bytes] = []
        for at in range(0, len(body), 200_000):
            await decoder.feed(body[at : at + 200_000], decoded.append)
        decoder.finish()
        assert b"".join(decoded) == data
        assert sum(taken) == decoder.nbytes == len(data)
        assert max(taken) <= 2**18


@pytest.mark.parametrize(
    ("body", "coding", "words"),
    [
        (b"plain", "gzip", "the body is not valid gzip data"),
        (picture(), "gzip", "the body is not valid gzip data"),
        (b"plain", "deflate", "the body is not valid deflate data"),
        (gzip.compress(picture())[:-5], "gzip", "the body's gzip data is truncated"),
        (zlib.compress(picture())[:1], "deflate", "the body's deflate data is truncated"),
        (gzip.compress(picture()) + b"more", "gzip", "bytes follow the end of the body's gzip data"),
        (zlib.compress(picture()) + b"more", "deflate", "bytes follow the end of the body's deflate data"),
        (b"", "gzip", "the body is empty"),
    ],
)
async def test_data_that_is_not_of_its_coding(rest: Rest, body: bytes, coding: str, words: str) -> None:
    """The error is a 400 and names the coding."""
    response = await rest.http.post("/classify", content=body, headers={"Content-Encoding": coding})
    assert response.status_code == 400
    assert words in response.json()["detail"]


@pytest.mark.parametrize(
    "path", ["/classify", "/compat/huggingface/detect", "/v2/models/fake_classify/infer", "/v2/repository/index"]
)
@pytest.mark.parametrize("coding", ["br", "zstd", "aws-chunked", "gzip, br", "gzip, gzip, gzip"])
async def test_other_codings_are_named(rest: Rest, path: str, coding: str) -> None:
    """A coding that is not decoded is a 415 that names it, and those that are decoded."""
    response = await rest.http.post(path, content=picture(), headers={"Content-Encoding": coding})
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "gzip, deflate"
    assert response.json()["type"] == "/problems/unsupported-encoding"
    named = "3 content codings" if coding.endswith("gzip") else repr(coding.split()[-1])
    assert named in response.json()["detail"]


@pytest.mark.settings(max_request_bytes=2**20)
@pytest.mark.parametrize("path", ["/classify", "/compat/huggingface/classify", "/v2/models/fake_classify/infer"])
async def test_a_body_that_grows_is_refused_at_the_limit(fresh_rest: Rest, path: str) -> None:
    """A small body that decodes to more than the limit of a body is a 413, and the service goes on."""
    body = gzip.compress(bytes(2**22), 9)
    assert len(body) < 2**13
    for encoded, coding in ((body, "gzip"), (gzip.compress(body), "gzip, gzip")):
        response = await fresh_rest.http.post(path, content=encoded, headers={"Content-Encoding": coding})
        assert (response.status_code, response.json()["detail"]) == (
            413,
            "the decoded body has more than 1,048,576 bytes; send fewer or smaller images",
        )
    assert (await fresh_rest.http.post("/classify", content=picture())).status_code == 200


@pytest.mark.settings(max_in_flight_bytes=2**20)
async def test_decoded_bytes_count_for_the_bodies_of_all_requests(fresh_rest: Rest) -> None:
    """What a body decodes to is held as an uncompressed one would be, and is given back."""
    encoded = gzip.compress(picture() + bytes(2**21))
    response = await fresh_rest.http.post("/classify", content=encoded, headers={"Content-Encoding": "gzip"})
    assert (response.status_code, response.json()["type"]) == (503, "/problems/overloaded")
    assert (await fresh_rest.http.post("/classify", content=picture() + bytes(2**19))).status_code == 200


async def test_decoding_ends_within_its_bounds() -> None:
    """What decodes to nothing, or to much between two codings, has bounds as well."""
    pieces: list[bytes] = []
    decoder = BodyDecoder(["gzip"], 2**20, lambda _: None)
    await decoder.feed(EMPTY_MEMBER * MAX_MEMBERS, pieces.append)
    with pytest.raises(BadRequest, match="4,096 members"):
        await decoder.feed(EMPTY_MEMBER, pieces.append)
    decoder = BodyDecoder(["gzip", "gzip"], 1000, lambda _: None)
    with pytest.raises(ImageTooLarge, match="1,000 bytes"):
        await decoder.feed(gzip.compress(EMPTY_MEMBER * 60), pieces.append)
    assert b"".join(pieces) == b""


async def test_several_codings_have_a_bound() -> None:
    """Each further coding is a further pass over the body."""
    assert decoder_of(["gzip, deflate, identity"], 1, lambda _: None) is not None
    with pytest.raises(UnsupportedEncoding):
        decoder_of(["gzip, deflate", "gzip"], 1, lambda _: None)
