"""HTTP alone: JSON tensors, the lengths of the binary extension, compression, and the other routes."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from typing import Any

import httpx2
import numpy as np
import pytest

from service.frontend.api.oip.http_codec import NUMBERS_BYTES, read_request
from tests.fakes import REQUEST_S
from tests.service.frontend.api.oip.oip_client import (
    JSON_LENGTH,
    OipFrontEnds,
    Refused,
    encoded,
    encoded_request,
    http_body,
    pixels_request,
    read_http,
)
from tests.service.frontend.rest_server import picture
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

INFER = "/v2/models/fake_classify/infer"
IMAGE = picture(33)
GOOD = encoded_request("fake_classify", IMAGE)


@pytest.fixture
def http(oip: OipFrontEnds) -> httpx2.AsyncClient:
    return oip.http.http


def listed(data: object, datatype: str = "UINT8", shape: tuple[int, ...] = (1, 2, 2, 3)) -> dict[str, Any]:
    """A request with its tensor in the JSON."""
    return {"inputs": [{"name": "image", "datatype": datatype, "shape": shape, "data": data}]}


async def refused(response: httpx2.Response) -> Refused:
    with pytest.raises(Refused) as error:
        read_http(response)
    return error.value


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/nothing", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("GET", "/v2/logging", 501),
        ("POST", INFER, 400),
    ],
)
async def test_errors_are_plain_json(http: httpx2.AsyncClient, method: str, path: str, status: int) -> None:
    """Whatever raises an error under `/v2`, its type is the only one whose text KServe's SDK (0.21) shows."""
    response = await http.request(method, path)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert response.json()["error"] == response.json()["detail"]
    assert (await http.get("/v2x")).headers["content-type"] == "application/problem+json"


async def test_metadata(http: httpx2.AsyncClient) -> None:
    """The metadata of the server and of a model, with and without its version, have the protocol's members."""
    server = (await http.get("/v2")).json()
    assert server.keys() == {"name", "version", "extensions"}
    assert "binary_tensor_data" in server["extensions"]
    model = (await http.get("/v2/models/fake_instances")).json()
    assert model == (await http.get("/v2/models/fake_instances/versions/1")).json()
    assert model["versions"] == ["1"]
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert {"name": "masks", "datatype": "BYTES", "shape": [-1, -1]} in model["outputs"]


@pytest.mark.parametrize("model", ["fake_classify", "fake_detect", "fake_instances", "fake_segment"])
async def test_metadata_are_true(oip: OipFrontEnds, model: str) -> None:
    """A request that names no outputs gets those in metadata and configuration, with that datatype and shape."""
    metadata = (await oip.http.http.get(f"/v2/models/{model}")).json()
    config = (await oip.http.http.get(f"/v2/models/{model}/config")).json()
    names = [output["name"] for output in metadata["outputs"]]
    assert [output["name"] for output in config["output"]] == names
    assert [[-1, *output["dims"]] for output in config["output"]] == [output["shape"] for output in metadata["outputs"]]
    pixels = np.zeros((3, 20, 30, 3), np.uint8)
    body, headers = http_body(pixels_request(model, pixels))
    response = await oip.http.http.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    document = json.loads(response.content[: int(response.headers[JSON_LENGTH])])
    assert [output["name"] for output in document["outputs"]] == names
    for received, made in zip(metadata["outputs"], document["outputs"], strict=True):
        assert made["datatype"] == received["datatype"]
        assert len(made["shape"]) == len(received["shape"])
        assert made["shape"][0] == 3
        assert all(size in (-1, real) for size, real in zip(received["shape"], made["shape"], strict=True)), received
    optional = config["parameters"].get("optional_outputs", {}).get("string_value", "")
    for name in filter(None, optional.split(", ")):
        assert name not in names
        assert set((await oip.http.infer(pixels_request(model, pixels, outputs=[name]))).outputs) == {name}


async def test_config(oip: OipFrontEnds) -> None:
    """A model's configuration has the limits that apply to requests."""
    config = (await oip.http.http.get("/v2/models/fake_segment/config")).json()
    assert config["max_batch_size"] == 64
    assert config["instance_group"] == [{"name": "fake_segment_0", "kind": "KIND_CPU", "count": 1}]
    assert config["model_transaction_policy"] == {"decoupled": False}
    assert config["output"][0] == {"name": "label_map", "data_type": "TYPE_UINT8", "dims": [-1, -1]}
    assert config["parameters"]["optional_outputs"] == {"string_value": "label_map_png, confidence_map, masks"}
    assert config["dynamic_batching"]["default_queue_policy"]["default_timeout_microseconds"] == REQUEST_S * 10**6


async def test_health(http: httpx2.AsyncClient) -> None:
    """A live, ready server and model are 200; unknown ones are 404."""
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/fake_detect/ready"):
        assert (await http.get(path)).status_code == 200
    for path in ("/v2/models/nothing/ready", "/v2/models/nothing", "/v2/models/fake_detect/versions/3/ready"):
        assert (await http.get(path)).status_code == 404


async def test_health_without_a_worker(fresh_oip: OipFrontEnds) -> None:
    """A front-end without a worker is live and not ready, with the time to retry."""
    fresh_oip.worker.stop.set()
    async with asyncio.timeout(PATIENCE_S):
        while (await fresh_oip.http.http.get("/v2/health/ready")).status_code == 200:
            await asyncio.sleep(0.01)
    for path in ("/v2/health/ready", "/v2/models/fake_detect/ready"):
        response = await fresh_oip.http.http.get(path)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
    assert (await fresh_oip.http.http.get("/v2/health/live")).json() == {"live": True}


async def test_statistics_count_requests_images_and_time(fresh_oip: OipFrontEnds) -> None:
    """Success, failure and images count by model, and a request's stages add up to less than its time."""
    await fresh_oip.http.infer(encoded_request("fake_classify", IMAGE, IMAGE, IMAGE))
    await fresh_oip.http.infer(GOOD)
    with pytest.raises(Refused):
        await fresh_oip.http.infer(encoded_request("fake_classify", b"no picture"))
    (one,) = (await fresh_oip.http.http.get("/v2/models/fake_classify/stats")).json()["model_stats"]
    assert (one["name"], one["version"], one["inference_count"]) == ("fake_classify", "1", 4)
    stats = one["inference_stats"]
    assert (stats["success"]["count"], stats["fail"]["count"]) == (2, 1)
    stages = [stats[stage] for stage in ("queue", "compute_input", "compute_infer", "compute_output")]
    assert {stage["count"] for stage in stages} == {2}
    assert 0 < sum(stage["ns"] for stage in stages) < stats["success"]["ns"]
    every = (await fresh_oip.http.http.get("/v2/models/stats")).json()["model_stats"]
    assert [model["inference_count"] for model in every] == [4, 0, 0, 0]


async def test_repository(http: httpx2.AsyncClient) -> None:
    """The index lists the served models, and loading is forbidden by default."""
    index = (await http.post("/v2/repository/index", content=b"")).json()
    assert {"name": "fake_detect", "version": "1", "state": "READY", "reason": ""} in index
    ready = (await http.post("/v2/repository/index", json={"ready": True})).json()
    assert ready == [model for model in index if model["state"] == "READY"]
    for verb in ("load", "unload"):
        response = await http.post(f"/v2/repository/models/fake_detect/{verb}", json={})
        assert response.status_code == 403
        assert "model_control" in response.json()["error"]
    given = {"parameters": {"config": "{}"}}
    assert (await http.post("/v2/repository/models/fake_detect/load", json=given)).status_code == 400
    assert (await http.post("/v2/repository/index", content=b"[")).status_code == 400


@pytest.mark.settings(model_control=True)
async def test_load_and_unload(fresh_oip: OipFrontEnds) -> None:
    """With the setting a model can be unloaded and loaded, and the index has its state."""
    http = fresh_oip.http.http
    assert (await http.post("/v2/repository/models/fake_detect/unload", json={})).status_code == 200
    assert (await http.get("/v2/models/fake_detect/ready")).status_code == 404
    states = {model["name"]: model["state"] for model in (await http.post("/v2/repository/index")).json()}
    assert (states["fake_detect"], states["fake_segment"]) == ("UNAVAILABLE", "READY")
    assert (await http.post("/v2/repository/models/fake_detect/load", json={})).status_code == 200
    assert (await http.get("/v2/models/fake_detect/ready")).status_code == 200
    assert (await http.post("/v2/repository/models/nothing/load", json={})).status_code == 404


async def test_unsupported_routes(http: httpx2.AsyncClient) -> None:
    """Shared memory, tracing and logging are 501 with a message; no region is registered."""
    assert (await http.get("/v2/systemsharedmemory/status")).json() == []
    assert (await http.get("/v2/cudasharedmemory/status")).json() == []
    for method, path in [
        ("POST", "/v2/systemsharedmemory/region/one/register"),
        ("POST", "/v2/cudasharedmemory/unregister"),
        ("GET", "/v2/systemsharedmemory/region/one/status"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/trace/setting"),
        ("GET", "/v2/models/fake_detect/trace/setting"),
    ]:
        response = await http.request(method, path)
        assert response.status_code == 501
        assert response.json()["error"].split()[0] in ("shared", "clients")


@pytest.mark.parametrize("side", [2, 64])
@pytest.mark.parametrize("nested", [True, False])
async def test_pixels_in_json(http: httpx2.AsyncClient, nested: bool, side: int) -> None:
    """Numbers may be nested like the shape, or flat."""
    pixels = np.full((1, side, side, 3), 77, np.uint8)
    data = pixels.tolist() if nested else pixels.ravel().tolist()
    answer = read_http(await http.post(INFER, json=listed(data, shape=pixels.shape)))
    assert answer["indices"][0, 0] == 77


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("nested", [True, False])
async def test_numbers_arrive_as_sent(nested: bool, indent: int | None) -> None:
    """A list of any length, nesting and white space has the same numbers, although it is decoded in pieces."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 90, 110, 3), dtype=np.uint8)
    data = pixels.tolist() if nested else pixels.ravel().tolist()
    body = json.dumps(listed(data, shape=pixels.shape), indent=indent).encode()
    assert len(body) > 3 * NUMBERS_BYTES
    (tensor,) = read_request(body, None).inputs
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.tobytes() == pixels.tobytes()


async def test_encoded_images_in_json(http: httpx2.AsyncClient) -> None:
    """In JSON an encoded image is base64."""
    text = base64.b64encode(IMAGE).decode()
    for data, shape in ((([text, text]), (2,)), ([[text], [text]], (2, 1))):
        answer = read_http(await http.post(INFER, json=listed(data, "BYTES", shape)))
        assert answer["indices"][:, 0].tolist() == [33, 33]


async def test_one_image_as_the_whole_body(http: httpx2.AsyncClient) -> None:
    """With a length of 0 the body is one image, as Triton's raw binary request."""
    answer = read_http(await http.post(INFER, content=IMAGE, headers={JSON_LENGTH: "0"}))
    assert answer["indices"][0, 0] == 33


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "words"),
    [
        ([1, 2, 3], "UINT8", (1, 2, 2, 3), "its data has 3 elements, its shape [1, 2, 2, 3] needs 12"),
        ([256] * 12, "UINT8", (1, 2, 2, 3), "whole numbers from 0 to 255"),
        ([-1] * 12, "UINT8", (1, 2, 2, 3), "whole numbers from 0 to 255"),
        ([2**80] * 12, "UINT8", (1, 2, 2, 3), "whole numbers from 0 to 255"),
        ([0.5] * 12, "UINT8", (1, 2, 2, 3), "whole numbers from 0 to 255"),
        ([True] * 12, "UINT8", (1, 2, 2, 3), "whole numbers from 0 to 255"),
        (["a"] * 12, "UINT8", (1, 2, 2, 3), "whole numbers from 0 to 255"),
        ([[1, 2], [3]], "UINT8", (1, 1, 1, 3), "whole numbers from 0 to 255"),
        ([[1, 2], [3]], "UINT8", (1, 1, 1, 3), "nested as its shape [1, 1, 1, 3]; it has 3 numbers"),
        ([[[1, 2, 3]], [[4, 5, 6]]], "UINT8", (1, 1, 2, 3), "nested as its shape [1, 1, 2, 3]; it has 6 numbers"),
        ([[1], [2], [3]], "UINT8", (1, 2**20, 2**20, 3), "it has 3 numbers"),
        ([[1]], "UINT8", (1,) * 9, "expected at most 8 sizes"),
        ([], "UINT8", (1, 1, 1, 3), "its data has 0 elements, its shape [1, 1, 1, 3] needs 3"),
        ({"a": 1}, "UINT8", (1, 1, 1, 3), "whole numbers from 0 to 255"),
        (7, "UINT8", (1, 1, 1, 3), "whole numbers from 0 to 255"),
        (None, "UINT8", (1, 1, 1, 3), "whole numbers from 0 to 255"),
        (["no base64!"], "BYTES", (1,), "element 0 is not valid base64"),
        (["é"], "BYTES", (1,), "element 0 is not valid base64"),
        ([1], "BYTES", (1,), "list of strings"),
        ("text", "BYTES", (1,), "list of strings"),
        ([base64.b64encode(IMAGE).decode()], "BYTES", (2,), "its data has 1 elements, its shape needs 2"),
        ([1.0] * 4, "FP32", (4,), "whole numbers from 0 to 255"),
    ],
)
async def test_bad_data_in_json(
    http: httpx2.AsyncClient, data: object, datatype: str, shape: tuple[int, ...], words: str
) -> None:
    """Invalid `data` is an error that gives the expected form."""
    error = await refused(await http.post(INFER, json=listed(data, datatype, shape)))
    assert error.status == 400
    assert words in error.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1], "data": ' + b"[" * 100_000, "deeply"),
        (b"[]", "not an inference request: Expected `object`"),
        (b"{}", "missing required field `inputs`"),
        (b'{"inputs": 1}', "Expected `array`"),
        (b'{"inputs": []}', "the request's inputs are none; expected one"),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}]}', "neither `data` nor"),
        (b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": ["1"]}]}', "Expected `int`"),
        (b'{"inputs": [], "id": 7}', "Expected `str`"),
        (b'{"inputs": [], "parameters": {"binary_data_output": 1}}', "binary_data_output is 1; expected true or false"),
        (b'{"inputs": [], "outputs": [{"name": "scores", "parameters": {"binary_data": 1}}]}', "binary_data is 1"),
        (b'{"inputs": [], "outputs": [{"name": "scores", "parameters": {"classification": -2}}]}', "is -2; expected"),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], '
            b'"parameters": {"shared_memory_region": "one"}}]}',
            "shared memory is not supported",
        ),
    ],
)
async def test_bad_json(http: httpx2.AsyncClient, body: bytes, words: str) -> None:
    """A body that is not an inference request is an error that gives the place."""
    error = await refused(await http.post(INFER, content=body))
    assert error.status == 400
    assert words in error.message


@pytest.mark.parametrize("depth", [1, 100, 900, 990, 2000, 100_000])
@pytest.mark.parametrize(("opened", "closed"), [("[", "]"), ('{"a": ', "}")])
@pytest.mark.parametrize(
    "place",
    [
        '"inputs": [], "parameters": {"top_k": %s}',
        '"inputs": [], "parameters": {"mask_format": %s}',
        '"inputs": [], "parameters": {"timeout": %s}',
        '"inputs": [], "parameters": {"other": %s}',
        '"inputs": [], "parameters": {"binary_data_output": %s}',
        '"inputs": [], "outputs": [{"name": "scores", "parameters": {"binary_data": %s}}]',
        '"inputs": [], "outputs": [{"name": "scores", "parameters": {"classification": %s}}]',
        '"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1], "parameters": {"binary_data_size": %s}}]',
    ],
)
async def test_nested_parameters(http: httpx2.AsyncClient, place: str, opened: str, closed: str, depth: int) -> None:
    """A parameter that is a list or an object is an error of the caller, however deeply it is nested."""
    value = opened * depth + "1" + closed * depth
    error = await refused(await http.post(INFER, content="{%s}" % (place % value)))
    of_request = any(name in place for name in ("top_k", "mask_format", "other"))
    assert error.status in ((400, 422) if depth > 900 else (422,) if of_request else (400,))
    assert len(error.message) < 300


@pytest.mark.parametrize("length", ["-1", "1e3", "", "seven", "99999999999999999999", "100000", "٣"])
async def test_invalid_header_length(http: httpx2.AsyncClient, length: str) -> None:
    """A length that is not a number, or exceeds the body, is an error."""
    body, _ = http_body(GOOD)
    headers = {JSON_LENGTH.encode(): length.encode()}
    error = await refused(await http.post(INFER, content=body, headers=headers))
    assert error.status == 400
    assert "expected the JSON's length in bytes" in error.message


async def test_wrong_header_length(http: httpx2.AsyncClient) -> None:
    """A length that cuts the JSON, or includes tensor bytes, is an error."""
    body, headers = http_body(GOOD)
    for length in (int(headers[JSON_LENGTH]) - 1, int(headers[JSON_LENGTH]) + 1):
        error = await refused(await http.post(INFER, content=body, headers={JSON_LENGTH: str(length)}))
        assert error.status == 400
        assert "not valid JSON" in error.message
    error = await refused(await http.post(INFER, content=body))
    assert f"if raw tensors follow it, send its length as {JSON_LENGTH}" in error.message


@pytest.mark.parametrize("size", [-1, 10**12, "12", True, 1.5])
async def test_invalid_binary_sizes(http: httpx2.AsyncClient, size: object) -> None:
    """A binary size that is not a number, or exceeds the body, is an error."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    error = await refused(await http.post(INFER, content=text + encoded(IMAGE), headers={JSON_LENGTH: str(len(text))}))
    assert error.status == 400
    assert "binary_data_size is" in error.message


async def test_bytes_behind_the_last_input(http: httpx2.AsyncClient) -> None:
    """Bytes after the last input are an error."""
    body, headers = http_body(GOOD)
    error = await refused(await http.post(INFER, content=body + b"more", headers=headers))
    assert "4 bytes follow the last input" in error.message


@pytest.mark.parametrize("binary", [True, False])
async def test_form_of_single_outputs(http: httpx2.AsyncClient, binary: bool) -> None:
    """`binary_data` of an output overrides the request's `binary_data_output`."""
    body, headers = http_body(
        GOOD, outputs=[{"name": "indices", "parameters": {"binary_data": binary}}, {"name": "labels"}], id="7"
    )
    response = await http.post(INFER, content=body, headers=headers)
    document = json.loads(response.content[: int(response.headers[JSON_LENGTH])])
    indices, labels = document["outputs"]
    assert ("data" in indices, "data" in labels) == (not binary, False)
    assert indices.get("parameters", {}).get("binary_data_size") == (40 if binary else None)
    assert read_http(response)["indices"].tolist() == [[33, 34, 35, 36, 37]]


async def test_json_alone(http: httpx2.AsyncClient) -> None:
    """Without raw outputs the response is JSON only; bytes that are not text are base64."""
    body, headers = http_body(
        encoded_request("fake_segment", IMAGE, outputs=["label_map_png", "labels"]), parameters={}
    )
    response = await http.post("/v2/models/fake_segment/infer", content=body, headers=headers)
    assert JSON_LENGTH not in response.headers
    assert response.headers["content-type"] == "application/json"
    picture_, labels = (output["data"] for output in response.json()["outputs"])
    assert base64.b64decode(picture_[0]).startswith(b"\x89PNG")
    assert labels == ["background", "dog"]


async def test_classification(fresh_oip: OipFrontEnds) -> None:
    """`classification` gives the best classes as text, as Triton's, whatever the number of the other outputs."""
    body, headers = http_body(
        GOOD, outputs=[{"name": "scores", "parameters": {"classification": 7}}, {"name": "indices"}]
    )
    answer = read_http(await fresh_oip.http.http.post(INFER, content=body, headers=headers))
    assert answer["scores"].shape == (1, 7)
    assert answer["scores"][0, 0] == b"0.500000:33:grey 33"
    assert answer["indices"].shape == (1, 5)
    body, headers = http_body(GOOD, outputs=[{"name": "labels", "parameters": {"classification": 7}}])
    error = await refused(await fresh_oip.http.http.post(INFER, content=body, headers=headers))
    assert (error.status, "has no classification" in error.message) == (422, True)


@pytest.mark.parametrize(
    ("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
async def test_compressed_request(http: httpx2.AsyncClient, coding: str, compress: Any) -> None:  # noqa: ANN401
    """A compressed body is decompressed; the JSON's length is that before compression."""
    body, headers = http_body(GOOD)
    response = await http.post(INFER, content=compress(body), headers={**headers, "Content-Encoding": coding})
    assert read_http(response)["indices"][0, 0] == 33


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_large_compressed_request(oip: OipFrontEnds, coding: str, compress: Any) -> None:  # noqa: ANN401
    """Large bodies are decompressed, whether or not compression made them small."""
    noise = np.random.default_rng(3).integers(0, 256, (1, 1100, 1000, 3), np.uint8)
    for pixels in (noise, np.full_like(noise, 9)):
        request = pixels_request("fake_classify", pixels)
        body, headers = http_body(request)
        response = await oip.http.http.post(
            INFER, content=compress(body, 1), headers={**headers, "Content-Encoding": coding}
        )
        plain = await oip.http.infer(request)
        assert read_http(response)["indices"].tolist() == plain["indices"].tolist()


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("gzip;q=0.2, deflate;q=0.9", "deflate"),
        ("*", "gzip"),
        ("identity, gzip", None),
        ("gzip;q=0", None),
        ("br", None),
        ("gzip;q=none", None),
    ],
)
async def test_compressed_response(http: httpx2.AsyncClient, accepted: str, coding: str | None) -> None:
    """A response has the client's preferred coding; the JSON's length is that before compression."""
    body, headers = http_body(GOOD)
    response = await http.post(INFER, content=body, headers={**headers, "Accept-Encoding": accepted})
    assert response.headers.get("content-encoding") == coding
    assert read_http(response)["indices"][0, 0] == 33


async def test_too_many_numbers_for_json(oip: OipFrontEnds, http: httpx2.AsyncClient) -> None:
    """JSON carries a limited number of elements, in both directions; raw bytes carry more."""
    big = picture(width=2100, height=2000)
    body, headers = http_body(encoded_request("fake_segment", big, outputs=["label_map"]), parameters={})
    error = await refused(await http.post("/v2/models/fake_segment/infer", content=body, headers=headers))
    assert (error.status, "request it with the parameter binary_data" in error.message) == (400, True)
    answer = await oip.http.infer(encoded_request("fake_segment", big, outputs=["label_map"]))
    assert answer["label_map"].shape == (1, 2000, 2100)
    numbers = b"0," * 2**22 + b"0"
    text = b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1], "data": [' + numbers + b"]}]}"
    error = await refused(await http.post(INFER, content=text))
    assert (error.status, "send it as binary data" in error.message) == (400, True)


async def test_a_broken_connection_cancels_its_images(fresh_oip: OipFrontEnds) -> None:
    """A broken connection cancels its request's images."""
    fresh_oip.worker.runner.unblocked.clear()
    body, headers = http_body(encoded_request("fake_detect", *[IMAGE] * 5))
    asking = asyncio.create_task(
        fresh_oip.http.http.post("/v2/models/fake_detect/infer", content=body, headers=headers)
    )
    registry = fresh_oip.pair.rest.registry
    await until(lambda: registry.get_sample_value("convmlp_in_flight_requests") == 5)
    asking.cancel()
    await until(lambda: registry.get_sample_value("convmlp_in_flight_requests") == 0)


async def test_metrics_count_by_task_and_model(fresh_oip: OipFrontEnds) -> None:
    """Metrics count the requests of the protocol, by model once it is known."""
    await fresh_oip.http.infer(GOOD)
    with pytest.raises(Refused):
        await fresh_oip.http.infer(encoded_request("nothing", IMAGE))
    text = (await fresh_oip.http.http.get("/metrics")).text
    ok = 'convmlp_requests_total{model="fake_classify",outcome="ok",task="classify",transport="rest"} 1.0'
    lost = 'convmlp_requests_total{model="",outcome="model-not-found",task="",transport="rest"} 1.0'
    assert ok in text
    assert lost in text


async def test_server_timing(http: httpx2.AsyncClient) -> None:
    """A response has the time of each stage and the model's precision, as of every other prediction."""
    body, headers = http_body(GOOD)
    response = await http.post(INFER, content=body, headers=headers)
    timing = response.headers["server-timing"]
    assert response.headers["x-model-precision"] == "fp32"
    assert [part.partition(";")[0].strip() for part in timing.split(",")] == [
        "decode",
        "queue",
        "infer",
        "post",
        "total",
        "batch",
    ]
