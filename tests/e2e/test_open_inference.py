"""The whole service and its embedded models, with Triton's unmodified clients."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import httpx2
import numpy as np
import PIL.Image
import pytest

from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import RunningService, running_service
from tests.e2e.triton import KINDS, AnyClient, Array, Triton, all_at_once, names_of, streamed

PICTURE = REFERENCE_PICTURE.read_bytes()
BREED, HEADS, OUTLINE = "convmlp_pets_breed", "convmlp_pets_heads", "convmlp_pets_outline"
MODELS = (BREED, HEADS, OUTLINE)
HTTP_KINDS, GRPC_KINDS = KINDS[:2], KINDS[2:]


@pytest.fixture(scope="module")
def clients() -> Iterator[ProcessPoolExecutor]:
    """The process with tritonclient."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


@pytest.fixture
def triton(service: RunningService, clients: ProcessPoolExecutor) -> Triton:
    return at(service, clients)


def at(service: RunningService, clients: ProcessPoolExecutor) -> Triton:
    return Triton(service.url.removeprefix("http://"), service.grpc_address, clients)


def rest(service: RunningService, path: str, image: bytes = PICTURE) -> dict[str, Any]:
    """REST's answer for one image."""
    reply = httpx2.post(f"{service.url}{path}", content=image, timeout=60)
    return dict(reply.json()["results"][0])


def photograph(width: int = 240) -> Array:
    """The reference image, smaller: uint8 (H, W, 3)."""
    with PIL.Image.open(REFERENCE_PICTURE) as image:
        small = image.convert("RGB").resize((width, width * image.height // image.width))
        return np.asarray(small)


def lossless(pixels: Array) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def case_health(client: AnyClient) -> dict[str, bool]:
    return {
        "live": client.call("is_server_live"),
        "ready": client.call("is_server_ready"),
        **{name: client.call("is_model_ready", name) for name in (*MODELS, "nothing")},
        "version": client.call("is_model_ready", BREED, "1"),
        "other version": client.call("is_model_ready", BREED, "2"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_health(triton: Triton, kind: str) -> None:
    """Server and models are live and ready; an unknown model or version is not ready, which is not an error."""
    received = triton.run(case_health, kind)
    assert [name for name, ready in received.items() if not ready] == ["nothing", "other version"]


def case_descriptions(client: AnyClient) -> tuple[Any, list[Any], list[Any]]:
    server = client.facts("get_server_metadata")
    metadata = [client.facts("get_model_metadata", name) for name in MODELS]
    configs = [client.facts("get_model_config", name) for name in MODELS]
    return server, metadata, configs if client.over_http else [config["config"] for config in configs]


@pytest.mark.parametrize("kind", KINDS)
def test_descriptions(triton: Triton, kind: str) -> None:
    """Metadata and configuration of each model are the same for every client."""
    server, metadata, configs = triton.run(case_descriptions, kind)
    assert server["name"] == "convmlp-serving"
    for name, received, config in zip(MODELS, metadata, configs, strict=True):
        assert (received["name"], config["name"], config["max_batch_size"]) == (name, name, 64)
        assert [tensor["name"] for tensor in received["inputs"]] == ["image"]
        assert [tensor["name"] for tensor in config["input"]] == ["image"]
        assert [one["name"] for one in received["outputs"]] == [one["name"] for one in config["output"]]
        for tensor, one in zip(received["outputs"], config["output"], strict=True):
            # JSON made of protobuf has 64-bit numbers as text.
            assert [int(size) for size in tensor["shape"]] == [-1, *(int(size) for size in one["dims"])]


def case_labels(client: AnyClient, image: bytes) -> tuple[list[str], Array, Array, Array]:
    result = client.infer(BREED, client.encoded(image), parameters={"top_k": 3}, request_id="cat")
    return names_of(result), result.as_numpy("labels"), result.as_numpy("indices"), result.as_numpy("scores")


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_rest(service: RunningService, triton: Triton, kind: str) -> None:
    """The labels of a photograph equal /classify's."""
    names, labels, indices, scores = triton.run(case_labels, kind, PICTURE)
    expected = rest(service, "/classify?top_k=3")["labels"]
    assert names == ["scores", "indices", "labels", "image_size"]
    assert [label.decode() for label in labels[0]] == [row["label"] for row in expected]
    assert indices[0].tolist() == [row["index"] for row in expected]
    np.testing.assert_allclose(scores[0], [row["score"] for row in expected], rtol=1e-5)


def case_boxes(client: AnyClient, image: bytes, threshold: float) -> tuple[Array, Array, Array]:
    result = client.infer(HEADS, client.encoded(image), parameters={"score_threshold": threshold})
    return tuple(result.as_numpy(name) for name in ("boxes", "labels", "num_detections"))


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_those_of_rest(service: RunningService, triton: Triton, kind: str) -> None:
    """The boxes equal /detect's; clients accept an answer without detections."""
    boxes, labels, number = triton.run(case_boxes, kind, PICTURE, 0.5)
    expected = rest(service, "/detect?score_threshold=0.5")["detections"]
    assert labels[0].tolist() == [row["label"].encode() for row in expected]
    assert number.tolist() == [[len(expected)]]
    sides = [[row["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for row in expected]
    np.testing.assert_allclose(boxes[0], sides, atol=0.01)
    boxes, labels, number = triton.run(case_boxes, kind, PICTURE, 1.0)
    assert (boxes.shape, labels.shape, number.tolist()) == ((1, 0, 4), (1, 0), [[0]])


def case_segments(client: AnyClient, image: bytes) -> tuple[Array, Array, bytes]:
    wanted = client.wanted("label_map", "areas", "label_map_png")
    result = client.infer(OUTLINE, client.encoded(image), outputs=wanted)
    return result.as_numpy("label_map"), result.as_numpy("areas"), result.as_numpy("label_map_png")[0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_label_map_is_that_of_rest(service: RunningService, triton: Triton, kind: str) -> None:
    """The label map, as an array and as PNG, equals /segment's."""
    label_map, areas, png = triton.run(case_segments, kind, PICTURE)
    reply = httpx2.post(f"{service.url}/segment?view=labelmap", content=PICTURE, timeout=60)
    with PIL.Image.open(io.BytesIO(reply.content)) as theirs, PIL.Image.open(io.BytesIO(png)) as ours:
        np.testing.assert_array_equal(label_map[0], np.asarray(theirs))
        np.testing.assert_array_equal(label_map[0], np.asarray(ours))
    assert areas[0].tolist() == [row["area"] for row in rest(service, "/segment?masks=false")["segments"]]


def same(one: Array, other: Array) -> bool:
    """Up to the last bits of floats, which may differ between batches."""
    if one.dtype == np.float32:
        return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-3)
    return np.array_equal(one, other)


def case_pixels_and_file(client: AnyClient, pixels: Array, png: bytes) -> list[str]:
    """The outputs that differ."""
    differ = []
    for model in MODELS:
        of_pixels = client.infer(model, client.pixels(np.stack([pixels, pixels])))
        of_file = client.infer(model, client.encoded(png))
        for name in names_of(of_file):
            one, *_ = of_file.as_numpy(name)
            differ += [name for other in of_pixels.as_numpy(name) if not same(one, other)]
    return differ


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_get_the_answer_of_their_lossless_file(triton: Triton, kind: str) -> None:
    """Pixels and a PNG of them have the same answer of each model, alone and in a batch."""
    pixels = photograph()
    assert triton.run(case_pixels_and_file, kind, pixels, lossless(pixels)) == []


def case_from_metadata_alone(client: AnyClient) -> list[tuple[list[int], str, list[int], str]]:
    """Random data of the shapes in the metadata, without naming outputs, as KServe's and Triton's examples do."""
    random = np.random.default_rng(5)
    made = []
    for model in MODELS:
        metadata = client.facts("get_model_metadata", model)
        (described,) = metadata["inputs"]
        assert described["datatype"] == "UINT8"
        batch, *rest_of_shape = (int(size) for size in described["shape"])
        assert batch == -1
        shape = [2, *(37 if size == -1 else size for size in rest_of_shape)]
        tensor = client.tensor(described["name"], random.integers(0, 256, shape, np.uint8), described["datatype"])
        names = [output["name"] for output in metadata["outputs"]]
        result = client.infer(model, tensor)
        assert names_of(result) == names
        for output in metadata["outputs"]:
            values = result.as_numpy(output["name"])
            made.append(
                ([int(size) for size in output["shape"]], output["datatype"], list(values.shape), values.dtype.name)
            )
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_metadata_are_sufficient(triton: Triton, kind: str) -> None:
    """A client can infer from the metadata alone; where it names no outputs, it gets those in them."""
    dtypes = {"FP32": "float32", "INT64": "int64", "INT32": "int32", "UINT8": "uint8", "BYTES": "object"}
    made = triton.run(case_from_metadata_alone, kind)
    for received, datatype, shape, dtype in made:
        assert dtype == dtypes[datatype]
        assert shape[0] == 2
        assert len(shape) == len(received)
        assert all(size in (-1, real) for size, real in zip(received, shape, strict=True))


def case_many_at_once(client: AnyClient, images: list[bytes]) -> list[list[int]]:
    results = all_at_once(client, BREED, [client.encoded(image) for image in images])
    return [result.as_numpy("indices")[0].tolist() for result in results]


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once(triton: Triton, kind: str) -> None:
    """32 concurrent requests, by each client's own means, each get their own answer."""
    widths = [60 + 8 * at for at in range(8)] * 4
    images = [lossless(photograph(width)) for width in widths]
    together = triton.run(case_many_at_once, kind, images)
    alone = [triton.run(case_many_at_once, kind, [image])[0] for image in images[:8]]
    assert together == alone * 4


def case_stream(client: AnyClient, images: list[bytes]) -> list[tuple[str | None, list[int] | str]]:
    asks = [
        {"model_name": BREED, "inputs": [client.encoded(image)], "request_id": f"{at}"}
        for at, image in enumerate(images)
    ]
    received: list[tuple[str | None, list[int] | str]] = []
    for result, error in streamed(client, asks):
        if error is not None:
            received.append((None, error.message()))
        else:
            response = result.get_response()
            assert response.parameters["triton_final_response"].bool_param
            received.append((response.id, result.as_numpy("indices")[0].tolist()))
    return received


@pytest.mark.parametrize("kind", GRPC_KINDS)
def test_stream(triton: Triton, kind: str) -> None:
    """64 images of one stream come back in their order, each as a final reply; an invalid one is an error there."""
    images = [lossless(photograph(60 + at)) for at in range(64)]
    images[9] = b"no picture"
    received = triton.run(case_stream, kind, images)
    assert [name for name, _ in received] == [None if at == 9 else f"{at}" for at in range(64)]
    assert "the image format is not supported" in str(received[9][1])
    assert received[20][1] == triton.run(case_many_at_once, kind, [images[20]])[0]


def case_compressed(client: AnyClient, image: bytes) -> list[tuple[str, list[int]]]:
    received = []
    for algorithm in ("gzip", "deflate"):
        options = (
            {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
            if client.over_http
            else {"compression_algorithm": algorithm}
        )
        result = client.infer(BREED, client.encoded(image), **options)
        received.append((algorithm, result.as_numpy("indices")[0].tolist()))
    return received


@pytest.mark.parametrize("kind", KINDS)
def test_compression(triton: Triton, kind: str) -> None:
    """Requests and responses may be compressed by both codings of the clients."""
    plain = triton.run(case_many_at_once, kind, [PICTURE])[0]
    assert triton.run(case_compressed, kind, PICTURE) == [("gzip", plain), ("deflate", plain)]


def case_json(client: AnyClient, pixels: Array) -> list[Any]:
    tensor = client.module.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=False)
    result = client.infer(
        BREED, tensor, outputs=[*client.wanted("labels", binary_data=False), *client.wanted("indices")]
    )
    binary = client.infer(BREED, client.pixels(pixels))
    return [
        [np.array_equal(result.as_numpy(name), binary.as_numpy(name)) for name in ("indices",)],
        result.get_output("labels")["data"],
        [element.decode() for element in binary.as_numpy("labels")[0]],
        result.get_output("indices").get("data"),
    ]


@pytest.mark.parametrize("kind", HTTP_KINDS)
def test_json_instead_of_binary_data(triton: Triton, kind: str) -> None:
    """Tensors may be JSON in both directions, each output by its own parameter."""
    equal, labels, expected, indices = triton.run(case_json, kind, photograph(40)[None])
    assert equal == [True]
    assert labels == expected
    assert indices is None


def case_classification(client: AnyClient, image: bytes) -> list[str]:
    result = client.infer(BREED, client.encoded(image), outputs=client.wanted("scores", class_count=4))
    return [element.decode() for element in result.as_numpy("scores")[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_classification(service: RunningService, triton: Triton, kind: str) -> None:
    """`class_count` gives the best classes as text, as Triton's image examples expect."""
    received = [text.split(":") for text in triton.run(case_classification, kind, PICTURE)]
    expected = rest(service, "/classify?top_k=4")["labels"]
    assert [(int(index), label) for _, index, label in received] == [(row["index"], row["label"]) for row in expected]
    assert [float(score) for score, _, _ in received] == pytest.approx([row["score"] for row in expected], abs=1e-6)


def case_refusals(client: AnyClient, image: bytes) -> list[tuple[str, str]]:
    good = client.encoded(image)
    return [
        client.refusal("infer", "nothing", [good]),
        client.refusal("infer", BREED, [good], model_version="3"),
        client.refusal("infer", BREED, [client.encoded(image[:100])]),
        client.refusal("infer", BREED, [client.encoded(image, b"no picture")]),
        client.refusal("infer", BREED, [client.tensor("picture", np.zeros((1, 2, 2, 3), np.uint8), "UINT8")]),
        client.refusal("infer", BREED, [client.tensor("image", np.zeros((1, 2, 2, 3), np.float32), "FP32")]),
        client.refusal("infer", BREED, [client.pixels(np.zeros((1, 3, 4, 4), np.uint8))]),
        client.refusal("infer", BREED, [good], outputs=client.wanted("logits")),
        client.refusal("infer", BREED, [good], parameters={"top_k": 0}),
        client.refusal("infer", BREED, [good], timeout=1),
        client.refusal("get_model_metadata", "nothing"),
        client.refusal("get_model_config", "nothing"),
    ]


REFUSALS = [
    ("404", "NOT_FOUND", "there is no model 'nothing'; served: convmlp_pets_breed"),
    ("404", "NOT_FOUND", "has no version '3'"),
    ("400", "INVALID_ARGUMENT", "truncated or corrupt"),
    ("415", "INVALID_ARGUMENT", "element 1 of input 'image': the image format is not supported"),
    ("400", "INVALID_ARGUMENT", "the request's inputs are 'picture'; expected one: 'image' is either BYTES"),
    ("400", "INVALID_ARGUMENT", "has the datatype 'FP32'; 'image' is either BYTES"),
    ("400", "INVALID_ARGUMENT", "is UINT8 of the shape [1, 3, 4, 4]; 'image' is either BYTES"),
    ("400", "INVALID_ARGUMENT", "has no output 'logits'; it has scores, indices, labels"),
    ("422", "INVALID_ARGUMENT", "parameter 'top_k' is 0; expected a whole number from 1 to 1000"),
    ("504", "DEADLINE_EXCEEDED", "before"),
    ("404", "NOT_FOUND", "there is no model 'nothing'"),
    ("404", "NOT_FOUND", "there is no model 'nothing'"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_readable(triton: Triton, kind: str) -> None:
    """The clients' own exceptions have the service's messages."""
    received = triton.run(case_refusals, kind, PICTURE)
    for (status, message), (over_http, over_grpc, words) in zip(received, REFUSALS, strict=True):
        assert status == (over_http if kind in HTTP_KINDS else f"StatusCode.{over_grpc}")
        assert words in message


def case_statistics(client: AnyClient, image: bytes) -> tuple[list[dict[str, Any]], int]:
    before = client.facts("get_inference_statistics", BREED)["model_stats"][0]
    client.infer(BREED, client.encoded(image, image, image))
    after = client.facts("get_inference_statistics", BREED)["model_stats"][0]
    return [before, after], len(client.facts("get_inference_statistics")["model_stats"])


@pytest.mark.parametrize("kind", KINDS)
def test_statistics(triton: Triton, kind: str) -> None:
    """A request of three images counts as one request and three images, with the time of each stage."""
    (before, after), models = triton.run(case_statistics, kind, PICTURE)
    assert models == 3

    def count(stats: Any, *path: str) -> int:  # noqa: ANN401
        for name in path:
            stats = stats.get(name, {})
        return int(stats or 0)  # protobuf's JSON leaves zeros out, and has 64-bit numbers as text

    assert count(after, "inference_count") - count(before, "inference_count") == 3
    for stage in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        path = ("inference_stats", stage)
        assert count(after, *path, "count") - count(before, *path, "count") == 1
        assert count(after, *path, "ns") > count(before, *path, "ns")


def case_not_offered(client: AnyClient) -> list[tuple[str, str]]:
    assert (
        not client.call("get_system_shared_memory_status") or not client.call("get_system_shared_memory_status").regions
    )
    return [
        client.refusal("register_system_shared_memory", "one", "/one", 8),
        client.refusal("unregister_cuda_shared_memory"),
        client.refusal("get_trace_settings"),
        client.refusal("update_log_settings", {"log_info": True}),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_offered(triton: Triton, kind: str) -> None:
    """Shared memory, tracing and logging are errors whose message the clients show."""
    for status, message in triton.run(case_not_offered, kind):
        assert status in ("501", "StatusCode.UNIMPLEMENTED")
        assert "shared memory is not supported" in message or "logging and tracing" in message


def case_repository(client: AnyClient) -> tuple[Any, tuple[str, str]]:
    return client.facts("get_model_repository_index"), client.refusal("unload_model", HEADS)


@pytest.mark.parametrize("kind", KINDS)
def test_repository_is_closed_by_default(triton: Triton, kind: str) -> None:
    """Every client can list the models; loading and unloading are forbidden by default."""
    index, (status, message) = triton.run(case_repository, kind)
    models = index if kind in HTTP_KINDS else index["models"]
    assert [(model["name"], model["state"]) for model in models] == [(name, "READY") for name in MODELS]
    assert status in ("403", "StatusCode.PERMISSION_DENIED")
    assert "model_control" in message


def case_load(client: AnyClient) -> list[bool]:
    client.call("unload_model", HEADS)
    unloaded = client.call("is_model_ready", HEADS)
    client.call("load_model", HEADS)
    return [unloaded, client.call("is_model_ready", HEADS)]


def test_load_and_unload(clients: ProcessPoolExecutor) -> None:
    """With the setting, each client can unload a model and load it again."""
    with running_service("--models", f"{BREED},{HEADS}", "--model-control") as service:
        for kind in KINDS:
            assert at(service, clients).run(case_load, kind) == [False, True], kind


def test_json_alone_from_any_http_client(service: RunningService) -> None:
    """Any HTTP client can infer with JSON alone."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *photograph(32).shape]}
    request = {"id": "1", "inputs": [{**tensor, "data": photograph(32).ravel().tolist()}]}
    reply = httpx2.post(f"{service.url}/v2/models/{BREED}/infer", json=request, timeout=60)
    document = json.loads(reply.content)
    assert (document["model_name"], document["id"]) == (BREED, "1")
    assert [output["name"] for output in document["outputs"]] == ["scores", "indices", "labels", "image_size"]
