"""Some hundreds of bad inputs, over HTTP and gRPC: damaged images, wrong types, parameters, headers and messages.

All are harmless: files that end early or have another beginning, and values that are out of range or of another kind.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import PIL.Image

from convmlp.v1 import vision_pb2 as pb
from model.reference import REFERENCE_PICTURE
from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as oip
from tests.service.frontend.rest_server import oversized_png

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")
TASKS = ("classify", "detect", "segment")
OTHER_PATHS = ("/analyze", "/embed", "/compat/deepstack/v1/vision/detection")
"""They take the bytes of an image as well."""
MODEL = "convmlp_pets_breed"
INFER = f"/v2/models/{MODEL}/infer"
LABELS = "labels"


@dataclass(frozen=True, slots=True)
class HttpInput:
    """A POST. `may_pass`: some of these are answered, for example an image whose end alone is missing."""

    name: str
    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    may_pass: bool = False


@dataclass(frozen=True, slots=True)
class RawInput:
    """Bytes on a connection of HTTP."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class GrpcInput:
    """The message of a unary call, `/SERVICE/METHOD`."""

    name: str
    method: str
    message: bytes
    timeout_s: float | None = None
    may_pass: bool = False


def small_picture() -> PIL.Image.Image:
    with PIL.Image.open(REFERENCE_PICTURE) as picture:
        return picture.convert("RGB").resize((96, 72))


def encoded(image_format: str) -> bytes:
    file = io.BytesIO()
    small_picture().save(file, image_format)
    return file.getvalue()


def bad_images() -> Iterator[tuple[str, bytes, bool]]:
    """Name, bytes, and whether it may be answered."""
    for image_format in FORMATS:
        data = encoded(image_format)
        for tenths in range(10):
            yield f"{image_format}, {tenths} tenths", data[: len(data) * tenths // 10], tenths > 0
        for count in (1, 2, 4, 8):
            yield f"{image_format}, {count} bytes at the start are 0", bytes(count) + data[count:], True
        yield f"{image_format} with a byte before", b"\n" + data, True
    for name, data in {
        "text": b"this is no image",
        "HTML": b"<!doctype html><html></html>",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "ZIP": b"PK\x03\x04" + bytes(60),
        "zeros": bytes(1000),
        "random bytes": random.Random(5).randbytes(1000),
        "UTF-16": "picture".encode("utf-16"),
        "JSON": b'{"picture": 1}',
    }.items():
        yield name, data, False
    yield "too many pixels", oversized_png(60_000, 60_000), False
    yield "no pixels", oversized_png(0, 0), False


def http_inputs() -> Iterator[HttpInput]:
    image = encoded("JPEG")
    text = base64.b64encode(image).decode()
    for position, (name, data, may_pass) in enumerate(bad_images()):
        task = TASKS[position % len(TASKS)]
        yield HttpInput(f"{task}: {name}", f"/{task}", data, may_pass=may_pass)
        yield HttpInput(f"Hugging Face {task}: {name}", f"/compat/huggingface/{task}", data, may_pass=may_pass)
        other = OTHER_PATHS[position % len(OTHER_PATHS)]
        yield HttpInput(f"{other}: {name}", other, data, may_pass=may_pass)
    for task, query in bad_queries():
        yield HttpInput(f"{task}?{query}", f"/{task}?{query}", image)
    for document in bad_documents(text):
        yield HttpInput(f"JSON {document[:40]!r}", "/classify", document, {"Content-Type": "application/json"})
        yield HttpInput(
            f"Hugging Face, JSON {document[:40]!r}",
            "/compat/huggingface/classify",
            document,
            {"Content-Type": "application/json"},
        )
    for infer in bad_inferences(text):
        yield HttpInput(f"inference {infer[:60]!r}", INFER, infer, {"Content-Type": "application/json"})
    for name, headers in bad_headers().items():
        yield HttpInput(f"header {name}", "/classify", image, headers)
    for length in ("-1", "x", "", "5", "99999999999999999999", str(2**31)):
        headers = {"Inference-Header-Content-Length": length}
        yield HttpInput(f"Inference-Header-Content-Length {length!r}", INFER, b'{"inputs": []}', headers)
    for name, form in bad_forms(image).items():
        yield HttpInput(
            f"form: {name}", "/classify", form, {"Content-Type": "multipart/form-data; boundary=b"}, may_pass=True
        )
    for path in ("/none", "/classify/none", "/v2/models/none/infer", "/v2/none", "/compat/huggingface/none"):
        yield HttpInput(f"path {path}", path, image)


def bad_queries() -> Iterator[tuple[str, str]]:
    for value in ("-1", "0", "x", "", "1.5", "1e3", "9" * 30, "%00", "nan"):
        yield "classify", f"top_k={value}"
        yield "detect", f"max_detections={value}"
    for value in ("-0.1", "1.1", "nan", "inf", "x", ""):
        yield "detect", f"score_threshold={value}"
    for query in ("mask_format=svg", "view=x", "model=none", f"model={MODEL}", "none=1", "masks=maybe"):
        yield "segment", query
    for query in ("model=", "model=%FF", "model=../../etc/passwd", "top_k=1&top_k=2", "TOP_K=5", "=1"):
        yield "classify", query


def bad_documents(text: str) -> Iterator[bytes]:
    values: tuple[Any, ...] = (
        {},
        [],
        None,
        5,
        "x",
        {"image": 5},
        {"image": None},
        {"image": ""},
        {"image": "###"},
        {"image": [text]},
    )
    for value in values:
        yield json.dumps(value).encode()
    lists: tuple[Any, ...] = (
        {"images": []},
        {"images": text},
        {"images": [1]},
        {"images": [[text]]},
        {"images": {"a": text}},
    )
    for value in lists:
        yield json.dumps(value).encode()
    yield json.dumps({"image": text, "images": [text]}).encode()
    yield json.dumps({"inputs": 7, "parameters": []}).encode()
    yield json.dumps({"inputs": text[:-5] + "*", "parameters": {"top_k": "x"}}).encode()
    yield from (
        b"{",
        b'{"image": ',
        b'{"image": NaN}',
        b'\xff\xfe{"image"',
        b"[" * 5000,
        b'{"image": "\\ud800"}',
        b"nul",
    )


def bad_inferences(text: str) -> Iterator[bytes]:
    good: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    changes: tuple[Any, ...] = (
        {"name": "picture"},
        {"name": 5},
        {"datatype": "FP32"},
        {"datatype": None},
        {"shape": []},
        {"shape": [2]},
        {"shape": [-1]},
        {"shape": [0]},
        {"shape": "1"},
        {"shape": [1.5]},
        {"shape": [2**70]},
        {"shape": [1] * 100},
        {"data": []},
        {"data": [5]},
        {"data": text},
        {"data": [None]},
        {"data": ["###"]},
        {"data": None},
        {"parameters": 5},
        {"parameters": {"binary_data_size": -1}},
        {"parameters": {"binary_data_size": 10**9}},
        {"parameters": {"shared_memory_region": "region"}},
        {"datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [1, 2, 3]},
        {"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 256]},
        {"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, -1]},
        {"datatype": "UINT8", "shape": [1, 1, 1, 4], "data": [1, 2, 3, 4]},
        {"datatype": "UINT8", "shape": [1, 0, 0, 3], "data": []},
        {"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [[1, 2, 3, 4]]},
    )
    for change in changes:
        yield json.dumps({"inputs": [{**good, **change}]}).encode()
    documents: tuple[Any, ...] = (
        {},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [good, good]},
        {"inputs": [good], "outputs": [{"name": "none"}]},
        {"inputs": [good], "outputs": 5},
        {"inputs": [good], "outputs": [{"name": LABELS, "parameters": {"classification": -1}}]},
        {"inputs": [good], "id": 5},
        {"inputs": [good], "parameters": {"top_k": "x"}},
        [good],
    )
    for document in documents:
        yield json.dumps(document).encode()


def bad_headers() -> dict[str, dict[str, str]]:
    timeouts = {f"timeout {value!r}": {"X-Request-Timeout-Ms": value} for value in ("x", "-1", "0", "1e400", "", "1.5")}
    encodings = {
        f"Content-Encoding {value!r}": {"Content-Encoding": value} for value in ("x", "gzip", "deflate", "gzip, gzip")
    }
    types = {
        f"Content-Type {value!r}": {"Content-Type": value}
        for value in ("multipart/form-data", "multipart/form-data; boundary=")
    }
    return {**timeouts, **encodings, "Accept": {"Accept": "video/mp4"}, **types}


def bad_forms(image: bytes) -> dict[str, bytes]:
    head = b'Content-Disposition: form-data; name="image"\r\n\r\n'
    return {
        "empty": b"",
        "no part": b"--b--\r\n",
        "no end": b"--b\r\n" + head + image,
        "another boundary": b"--c\r\n" + head + image + b"\r\n--c--\r\n",
        "no head": b"--b\r\n\r\n" + image + b"\r\n--b--\r\n",
        "no name": b"--b\r\nContent-Disposition: form-data\r\n\r\n" + image + b"\r\n--b--\r\n",
        "another name": b"--b\r\n" + head.replace(b"image", b"picture") + image + b"\r\n--b--\r\n",
        "empty part": b"--b\r\n" + head + b"\r\n--b--\r\n",
        "a thousand headers": b"--b\r\n" + b"X: y\r\n" * 1000 + head + image + b"\r\n--b--\r\n",
        "a hundred parts": (b"--b\r\n" + head + b"x\r\n") * 100 + b"--b--\r\n",
    }


def raw_inputs() -> Iterator[RawInput]:
    host = b"Host: localhost\r\n"
    for name, data in {
        "no HTTP": b"hello\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "another version": b"GET / HTTP/9.9\r\n" + host + b"\r\n",
        "HTTP/2 in words": b"GET /livez HTTP/2.0\r\n" + host + b"\r\n",
        "no path": b"GET  HTTP/1.1\r\n" + host + b"\r\n",
        "a method of bytes": b"\xff\xfe / HTTP/1.1\r\n" + host + b"\r\n",
        "a header without a colon": b"GET /livez HTTP/1.1\r\n" + host + b"nothing\r\n\r\n",
        "a header of NUL": b"GET /livez HTTP/1.1\r\n" + host + b"X: a\0b\r\n\r\n",
        "two lengths": b"POST /classify HTTP/1.1\r\n" + host + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "a negative length": b"POST /classify HTTP/1.1\r\n" + host + b"Content-Length: -5\r\n\r\n",
        "a length of words": b"POST /classify HTTP/1.1\r\n" + host + b"Content-Length: many\r\n\r\n",
        "a length and chunks": b"POST /classify HTTP/1.1\r\n"
        + host
        + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "a chunk of words": b"POST /classify HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n",
        "an unknown coding": b"POST /classify HTTP/1.1\r\n" + host + b"Transfer-Encoding: x\r\n\r\n",
        "a long head": b"GET /livez HTTP/1.1\r\n" + host + b"X: " + b"y" * 10**6 + b"\r\n\r\n",
    }.items():
        yield RawInput(name, data)


def grpc_inputs() -> Iterator[GrpcInput]:
    vision, inference = "/convmlp.v1.Vision", "/inference.GRPCInferenceService"
    image = encoded("JPEG")
    requests: Mapping[str, Any] = {
        "Classify": pb.ClassifyRequest,
        "Detect": pb.DetectRequest,
        "Segment": pb.SegmentRequest,
    }
    for position, (name, data, may_pass) in enumerate(bad_images()):
        method = tuple(requests)[position % len(requests)]
        message = requests[method](image=data).SerializeToString()
        yield GrpcInput(f"{method}: {name}", f"{vision}/{method}", message, may_pass=may_pass)
        tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(data)
        infer = oip.ModelInferRequest(model_name=MODEL, inputs=[tensor])
        yield GrpcInput(f"ModelInfer: {name}", f"{inference}/ModelInfer", infer.SerializeToString(), may_pass=may_pass)
    numbers = random.Random(3)
    for length in (1, 2, 3, 5, 10, 100, 1000, 10_000):
        data = b"\x0a\xff" + numbers.randbytes(length)
        for method in (*(f"{vision}/{name}" for name in requests), f"{inference}/ModelInfer"):
            yield GrpcInput(f"{method}: {length} random bytes", method, data, may_pass=True)
    whole = pb.ClassifyRequest(image=image, model=MODEL, top_k=3).SerializeToString()
    for tenths in range(1, 10):
        yield GrpcInput(f"{tenths} tenths of a message", f"{vision}/Classify", whole[: len(whole) * tenths // 10])
    for name, request in {
        "no such model": pb.ClassifyRequest(image=image, model="none"),
        "a model of another task": pb.DetectRequest(image=image, model=MODEL),
        "a long id": pb.ClassifyRequest(image=image, id="x" * 1000),
        "a threshold above 1": pb.DetectRequest(image=image, score_threshold=1.5),
        "a threshold of NaN": pb.DetectRequest(image=image, score_threshold=float("nan")),
        "too many labels": pb.ClassifyRequest(image=image, top_k=2**32 - 1),
        "no image": pb.SegmentRequest(),
    }.items():
        method = type(request).__name__.removesuffix("Request")
        yield GrpcInput(name, f"{vision}/{method}", request.SerializeToString())
    yield GrpcInput("no time", f"{vision}/Classify", whole, timeout_s=0.0001)
    yield GrpcInput("no such method", f"{vision}/None", whole)
    yield GrpcInput("no such service", "/none.None/None", whole)
    changes: tuple[dict[str, Any], ...] = (
        {"model_name": "none"},
        {"model_version": "9"},
        {"inputs": []},
        {"raw_input_contents": [b"x", b"y"]},
        {"raw_input_contents": [b"\xff\xff\xff\xff"]},
        {"raw_input_contents": [b""]},
        {"outputs": [oip.ModelInferRequest.InferRequestedOutputTensor(name="none")]},
    )
    for change in changes:
        tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
        fields: dict[str, Any] = {"model_name": MODEL, "inputs": [tensor], **change}
        message = oip.ModelInferRequest(**fields).SerializeToString()
        yield GrpcInput(f"ModelInfer, {change!s:.50}", f"{inference}/ModelInfer", message)
