"""What is asked: one table for each transport, in the order in which it is asked."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

from tests.recorded.starter import POISON

KEYS = {name: f"key-of-{name}-0123456789" for name in ("alice", "bob", "carol", "dave", "erin")}
"""API keys of the strict service. Each caller has his own rate, so that only those who shall meet its end do."""

COMMON: dict[str, Any] = {"heartbeat_interval_ms": 50}
SERVICES: dict[str, dict[str, Any]] = {
    "open": {},
    "strict": {
        "model_control": True,
        "rate_limit_per_s": 0.00001,
        "rate_limit_burst": 16,
        "max_image_bytes": 20_000,
        "max_request_bytes": 70_000,
        "max_image_mpx": 1,
        "max_images": 4,
        "max_in_flight": 2,
    },
    "alone": {"worker_timeout_ms": 600_000},
}
"""Settings of the front-ends: `open` has the defaults, `strict` has API keys and small bounds, `alone` no worker."""


@dataclass(frozen=True)
class Http:
    """`held`: the device keeps its batches until there is an answer. `before`: how often it was asked already."""

    name: str
    line: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    service: str = "open"
    held: bool = False
    before: int = 0


@dataclass(frozen=True)
class Rpc:
    """`messages`: the fields of each request; more than one, or none, of a stream only. bytes: a message as it is."""

    name: str
    method: str
    messages: Sequence[Mapping[str, Any] | bytes] = ({},)
    metadata: Sequence[tuple[str, str]] = ()
    service: str = "open"
    held: bool = False
    before: int = 0


def png(grey: int = 7, width: int = 80, height: int = 60) -> bytes:
    """A picture of one grey level, encoded without compression: the same bytes whatever zlib there is."""
    return _png(np.full((height, width, 3), grey, np.uint8))


def gradient() -> bytes:
    """A picture without two equal columns, to draw an overlay on."""
    y, x = np.mgrid[0:120, 0:160]
    return _png(np.stack([x, y * 2, 255 - x], axis=2).astype(np.uint8))


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]], *, claims: tuple[int, int] | None = None) -> bytes:
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", *(claims or (width, height)), 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def huge() -> bytes:
    """A small file that says it is large."""
    return _png(np.zeros((2, 2, 3), np.uint8), claims=(20_000, 20_000))


def pillow(form: str, grey: int = 7, orientation: int | None = None) -> bytes:
    """A picture of 80 x 40 as Pillow encodes it."""
    file = io.BytesIO()
    exif = PIL.Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    PIL.Image.new("RGB", (80, 40), (grey, grey, grey)).save(file, form, exif=exif, quality=95)
    return file.getvalue()


def bmp(grey: int = 7) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (grey, grey, grey)).save(file, "BMP")
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def document(**members: Any) -> bytes:  # noqa: ANN401
    return json.dumps(members).encode()


def form(*parts: tuple[str, bytes], end: bytes = b"--frontier--\r\n") -> bytes:
    heads = (f'--frontier\r\nContent-Disposition: form-data; name="{name}"; filename="a"\r\n\r\n' for name, _ in parts)
    return b"".join(head.encode() + data + b"\r\n" for head, (_, data) in zip(heads, parts, strict=True)) + end


def key(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


FORM = {"Content-Type": "multipart/form-data; boundary=frontier"}
JSON = {"Content-Type": "application/json"}

PICTURE = png()
NO_PICTURE = b"%PDF-1.7 not a picture"

REST = [
    Http("liveness", "GET /livez"),
    Http("readiness", "GET /readyz"),
    Http("models", "GET /models"),
    Http("one model", "GET /models/fake_classify"),
    Http("one model that there is not", "GET /models/nothing"),
    *(Http(f"page {path}", f"GET {path}") for path in ("/", "/docs", "/web/playground.js", "/web/docs.js")),
    *(Http(f"page {path}", f"GET {path}") for path in ("/web/style.css", "/web/sample.jpg")),
    Http("HEAD of a page", "HEAD /docs"),
    Http("HEAD of a prediction", "HEAD /classify"),
    Http("HEAD of liveness", "HEAD /livez"),
    Http("OPTIONS of a prediction", "OPTIONS /classify"),
    Http("OPTIONS of everything", "OPTIONS *"),
    Http("unknown path", "GET /nothing/here?at=all"),
    Http("unknown path, POST", "POST /classify/", PICTURE),
    Http("GET of a prediction", "GET /classify"),
    Http("PUT of a prediction", "PUT /detect", PICTURE),
    Http("DELETE of a model", "DELETE /models/fake_classify"),
    # Forms of a picture
    Http("classify", "POST /classify", PICTURE),
    Http("classify a JPEG", "POST /classify", pillow("JPEG")),
    Http("classify a turned JPEG", "POST /classify", pillow("JPEG", orientation=6)),
    Http("classify a WebP", "POST /classify", pillow("WEBP")),
    Http("classify a GIF", "POST /classify", pillow("GIF")),
    Http("classify a BMP", "POST /classify", bmp()),
    Http("classify, request id made", "POST /classify", PICTURE, {"X-Request-Id": ""}),
    Http("classify, named content type", "POST /classify", PICTURE, {"Content-Type": "text/plain"}),
    Http("classify, form", "POST /classify", form(("image", PICTURE)), FORM),
    Http("classify, form of three", "POST /classify?top_k=1", form(*(("image", png(n)) for n in (30, 10, 20))), FORM),
    Http("classify, JSON", "POST /classify", document(image=b64(PICTURE)), JSON),
    Http("classify, JSON of two", "POST /classify?top_k=1", document(images=[b64(png(3)), b64(png(4))]), JSON),
    Http("classify, data URL", "POST /classify", document(image=f"data:image/png;base64,{b64(PICTURE)}"), JSON),
    # Parameters
    Http("classify, top_k", "POST /classify?top_k=2", PICTURE),
    Http("classify, model", "POST /classify?model=fake_classify&top_k=1", PICTURE),
    Http("classify, deadline", "POST /classify", PICTURE, {"X-Request-Timeout-Ms": "1000000"}),
    Http("detect", "POST /detect", PICTURE),
    *(Http(f"detect, {query}", f"POST /detect?{query}", PICTURE) for query in ("mask_format=none", "masks=false")),
    Http("detect, threshold", "POST /detect?score_threshold=0.7&masks=0", PICTURE),
    Http("detect, at most one", "POST /detect?max_detections=1&masks=0", PICTURE),
    Http("detect, nothing found", "POST /detect?score_threshold=0.99", PICTURE),
    *(
        Http(f"{task}, masks as {kind}", f"POST /{task}?mask_format={kind}", PICTURE)
        for task in ("detect", "segment")
        for kind in ("rle", "png", "polygon")
    ),
    Http("detect, model without masks", "POST /detect?model=fake_detect", PICTURE),
    Http("detect, model with masks", "POST /detect?model=fake_instances", PICTURE),
    Http("segment", "POST /segment", PICTURE),
    Http("segment, no masks", "POST /segment?masks=false", PICTURE),
    Http("segment, label map", "POST /segment?view=labelmap", PICTURE),
    # Pictures as answers
    *(
        Http(f"{task}, {accept}", f"POST /{task}", gradient(), {"Accept": accept})
        for task in ("classify", "detect", "segment")
        for accept in ("image/png", "image/jpeg", "image/webp")
    ),
    Http("detect, overlay of masks", "POST /detect?model=fake_instances", gradient(), {"Accept": "image/png"}),
    Http("classify, Accept ranked", "POST /classify", PICTURE, {"Accept": "image/*;q=0.5, application/json;q=0.9"}),
    Http("Accept takes nothing", "POST /classify", PICTURE, {"Accept": "text/html"}),
    Http(
        "overlay of two pictures",
        "POST /detect",
        form(("image", PICTURE), ("image", PICTURE)),
        FORM | {"Accept": "image/png"},
    ),
    Http(
        "label map of two pictures", "POST /segment?view=labelmap", form(("image", PICTURE), ("image", PICTURE)), FORM
    ),
    Http("overlay of no picture", "POST /detect", NO_PICTURE, {"Accept": "image/png"}),
    # Bad pictures
    Http("no body", "POST /classify"),
    Http("no body, detect", "POST /detect"),
    Http("truncated PNG", "POST /classify", PICTURE[:60]),
    Http("truncated JPEG", "POST /segment", pillow("JPEG")[:300]),
    Http("no picture", "POST /classify", NO_PICTURE),
    Http("too many pixels", "POST /classify", huge()),
    Http("second of two is bad", "POST /classify", form(("image", PICTURE), ("image", NO_PICTURE)), FORM),
    # Bad parameters
    *(
        Http(f"bad query: {path}", f"POST {path}", PICTURE)
        for path in (
            "/classify?top_k=0",
            "/classify?top_k=1001",
            "/classify?top_k=many",
            "/classify?top_k=1&top_k=2",
            "/classify?score_threshold=0.5",
            "/classify?color=blue",
            "/classify?model=",
            "/classify?model=nothing",
            "/classify?model=fake_detect",
            "/classify?%FF=1",
            "/detect?score_threshold=1.5",
            "/detect?score_threshold=high",
            "/detect?max_detections=0",
            "/detect?masks=perhaps",
            "/detect?mask_format=bmp",
            "/detect?view=labelmap",
            "/segment?view=depth",
            "/segment?top_k=5",
        )
    ),
    Http("bad deadline", "POST /classify", PICTURE, {"X-Request-Timeout-Ms": "soon"}),
    Http("deadline of zero", "POST /classify", PICTURE, {"X-Request-Timeout-Ms": "0"}),
    # Bad bodies
    *(
        Http(f"bad JSON: {body}", "POST /classify", body.encode(), JSON)
        for body in ("{", "[]", "{}", '{"image": 5}', '{"images": []}', '{"picture": "abc"}', '{"image": "a!"}')
    ),
    Http("form of no image", "POST /classify", form(("picture", PICTURE)), FORM),
    Http("form cut short", "POST /classify", form(("image", PICTURE), end=b""), FORM),
    Http("form without boundary", "POST /classify", form(("image", PICTURE)), {"Content-Type": "multipart/form-data"}),
    Http("form of too many", "POST /classify", form(*(("image", bmp()) for _ in range(65))), FORM),
    # The device
    Http("device fails", "POST /classify", png(POISON)),
    Http("device fails, overlay", "POST /segment", png(POISON), {"Accept": "image/png"}),
    Http("deadline passes", "POST /classify", PICTURE, {"X-Request-Timeout-Ms": "700"}, held=True),
    # Keys, rates and bounds
    Http("no key", "POST /classify", PICTURE, service="strict"),
    Http("wrong key", "POST /classify", PICTURE, {"Authorization": "Bearer nobodys-key-01234567"}, service="strict"),
    Http("another scheme", "GET /models", headers={"Authorization": "Basic YTpi"}, service="strict"),
    Http("no key for liveness", "GET /livez", service="strict"),
    Http("good key", "POST /classify?top_k=1", PICTURE, key("alice"), service="strict"),
    Http("too many bytes of an image", "POST /classify", PICTURE + bytes(6_000), key("alice"), service="strict"),
    Http("too many bytes of a request", "POST /classify", PICTURE + bytes(60_000), key("alice"), service="strict"),
    Http("too many pixels for it", "POST /classify", huge(), key("alice"), service="strict"),
    Http(
        "too many images",
        "POST /classify",
        form(*(("image", bmp()) for _ in range(5))),
        FORM | key("alice"),
        service="strict",
    ),
    Http(
        "more images than slots",
        "POST /classify",
        form(*(("image", bmp()) for _ in range(4))),
        FORM | key("alice"),
        service="strict",
    ),
    Http("rate used up", "POST /classify?top_k=1", bmp(), key("bob"), service="strict", before=16),
    # Without a worker
    *(Http(f"no worker: {line}", line, service="alone") for line in ("GET /livez", "GET /readyz", "GET /models")),
    Http("no worker: GET /models/fake_classify", "GET /models/fake_classify", service="alone"),
    *(Http(f"no worker: {task}", f"POST /{task}", PICTURE, service="alone") for task in ("classify", "segment")),
]


def hugging(task: str, body: bytes, name: str, query: str = "", **more: Any) -> Http:  # noqa: ANN401
    return Http(f"{task}: {name}", f"POST /compat/huggingface/{task}{query}", body, **more)


HUGGING_FACE = [
    *(hugging(task, PICTURE, "bytes") for task in ("classify", "detect", "segment")),
    hugging("classify", document(inputs=b64(PICTURE), parameters={"top_k": 2}), "JSON with top_k"),
    hugging("detect", document(inputs=b64(PICTURE), parameters={"threshold": 0.7}), "JSON with threshold"),
    hugging("segment", document(inputs=b64(PICTURE), parameters={"subtask": "instance"}), "instances"),
    hugging("segment", document(inputs=b64(PICTURE), parameters={"subtask": "semantic"}), "semantic"),
    hugging("segment", PICTURE, "model of instances", "?model=fake_instances"),
    hugging("segment", document(inputs=b64(PICTURE), parameters={"subtask": "panoptic"}), "unknown subtask"),
    hugging(
        "segment",
        document(inputs=b64(PICTURE), parameters={"subtask": "instance"}),
        "subtask of another model",
        "?model=fake_segment",
    ),
    hugging("classify", document(inputs=b64(PICTURE), parameters={"function_to_apply": "sigmoid"}), "sigmoid"),
    hugging("classify", document(inputs=b64(PICTURE), parameters={"topk": 1}), "unknown parameter"),
    hugging("classify", document(inputs=b64(PICTURE), parameters={"top_k": 0}), "top_k of zero"),
    hugging("detect", document(inputs=b64(PICTURE), parameters={"threshold": 2}), "threshold of two"),
    hugging("classify", b"", "no body"),
    hugging("classify", b"{", "broken JSON"),
    hugging("classify", b"{}", "no inputs"),
    hugging("classify", document(inputs="https://example.org/a.jpg"), "URL"),
    hugging("classify", NO_PICTURE, "no picture"),
    hugging("classify", PICTURE, "unknown model", "?model=nothing"),
    hugging("classify", PICTURE, "model of another task", "?model=fake_detect"),
    hugging("classify", PICTURE, "another query", "?top_k=3"),
    hugging("classify", png(POISON), "device fails"),
    Http("GET", "GET /compat/huggingface/classify"),
    hugging("classify", PICTURE, "no key", service="strict"),
    hugging("segment", PICTURE, "no worker", service="alone"),
]


def inference(model: str, *images: bytes, **members: Any) -> dict[str, Any]:  # noqa: ANN401
    """Line and body of an Open Inference request with its images as raw data behind the JSON."""
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [len(images)],
        "parameters": {"binary_data_size": len(data)},
    }
    text = document(**{"inputs": [tensor], **members})
    return {
        "line": f"POST /v2/models/{model}/infer",
        "body": text + data,
        "headers": {"Inference-Header-Content-Length": str(len(text))},
    }


def pixels_in_json(**members: Any) -> bytes:  # noqa: ANN401
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [9] * 12, **members}
    return document(id="one", inputs=[tensor])


BINARY = {"parameters": {"binary_data_output": True}}
CLASSIFY = "POST /v2/models/fake_classify/infer"

OIP_HTTP = [
    *(
        Http(line, line)
        for line in (
            "GET /v2",
            "GET /v2/",
            "GET /v2/health/live",
            "GET /v2/health/ready",
            "GET /v2/models/fake_classify",
            "GET /v2/models/fake_instances",
            "GET /v2/models/fake_segment/versions/1",
            "GET /v2/models/fake_segment/versions/2",
            "GET /v2/models/nothing",
            "GET /v2/models/fake_detect/ready",
            "GET /v2/models/nothing/ready",
            "GET /v2/models/fake_classify/config",
            "GET /v2/models/fake_detect/config",
            "POST /v2/repository/index",
            "POST /v2/repository/models/fake_detect/load",
            "POST /v2/repository/models/fake_detect/unload",
            "GET /v2/systemsharedmemory/status",
            "GET /v2/cudasharedmemory/status",
            "POST /v2/systemsharedmemory/region/a/register",
            "GET /v2/logging",
            "GET /v2/trace/setting",
            "GET /v2/models/fake_classify/infer",
            "GET /v2/nothing",
        )
    ),
    Http("classify, JSON", CLASSIFY, pixels_in_json()),
    Http("classify, versioned", "POST /v2/models/fake_classify/versions/1/infer", pixels_in_json()),
    Http("classify, another version", "POST /v2/models/fake_classify/versions/9/infer", pixels_in_json()),
    Http("classify, gzip taken", CLASSIFY, pixels_in_json(), {"Accept-Encoding": "identity"}),
    Http("classify, binary", **inference("fake_classify", PICTURE, **BINARY)),
    Http("classify, two, with id", **inference("fake_classify", PICTURE, png(9), id="of two", **BINARY)),
    Http("classify, top_k", **inference("fake_classify", PICTURE, parameters={"top_k": 2})),
    Http("classify, one output", **inference("fake_classify", PICTURE, outputs=[{"name": "labels"}])),
    Http("detect, JSON", **inference("fake_detect", PICTURE)),
    Http("detect, binary", **inference("fake_detect", PICTURE, **BINARY)),
    Http("instances, masks as RLE", **inference("fake_instances", PICTURE, parameters={"mask_format": "rle"})),
    Http("instances, masks as polygons", **inference("fake_instances", PICTURE, parameters={"mask_format": "polygon"})),
    Http("segment, JSON", **inference("fake_segment", png(7, 8, 6))),
    Http("segment, binary", **inference("fake_segment", png(7, 8, 6), **BINARY)),
    Http("unknown model", **inference("nothing", PICTURE)),
    Http("no body", CLASSIFY),
    Http("broken JSON", CLASSIFY, b"{"),
    Http("no inputs", CLASSIFY, b"{}"),
    Http("another input", CLASSIFY, pixels_in_json(name="picture")),
    Http("another datatype", CLASSIFY, pixels_in_json(datatype="FP64")),
    Http("another shape", CLASSIFY, pixels_in_json(shape=[1, 3, 2, 2])),
    Http("too few pixels", CLASSIFY, pixels_in_json(data=[9] * 11)),
    Http("a pixel of 256", CLASSIFY, pixels_in_json(data=[256] * 12)),
    Http("no picture", **inference("fake_classify", NO_PICTURE)),
    Http("truncated", **inference("fake_classify", PICTURE[:60])),
    Http("too many pixels", **inference("fake_classify", huge())),
    Http("unknown parameter", **inference("fake_classify", PICTURE, parameters={"top_q": 3})),
    Http("top_k of zero", **inference("fake_classify", PICTURE, parameters={"top_k": 0})),
    Http("unknown output", **inference("fake_classify", PICTURE, outputs=[{"name": "logits"}])),
    Http("wrong length of the JSON", CLASSIFY, b"{}", {"Inference-Header-Content-Length": "99"}),
    Http("unknown coding", CLASSIFY, b"{}", {"Content-Encoding": "br"}),
    Http("device fails", **inference("fake_classify", png(POISON))),
    Http("deadline passes", **inference("fake_detect", PICTURE, parameters={"timeout": 700_000}), held=True),
    Http("statistics", "GET /v2/models/fake_classify/stats"),
    Http("statistics of all", "GET /v2/models/stats"),
    Http("no key", "GET /v2", service="strict"),
    Http("unload", "POST /v2/repository/models/fake_detect/unload", headers=key("carol"), service="strict"),
    Http("unloaded", "GET /v2/models/fake_detect/ready", headers=key("carol"), service="strict"),
    Http("index", "POST /v2/repository/index", headers=key("carol"), service="strict"),
    Http("load", "POST /v2/repository/models/fake_detect/load", headers=key("carol"), service="strict"),
    Http("load what there is not", "POST /v2/repository/models/nothing/load", headers=key("carol"), service="strict"),
    Http(
        "unload what there is not", "POST /v2/repository/models/nothing/unload", headers=key("carol"), service="strict"
    ),
    Http("no worker: ready", "GET /v2/health/ready", service="alone"),
    Http("no worker: metadata", "GET /v2/models/fake_classify", service="alone"),
    Http("no worker: index", "POST /v2/repository/index", headers={"X-Request-Timeout-Ms": "300"}, service="alone"),
    Http("no worker: infer", **inference("fake_classify", PICTURE), service="alone"),
]

VISION_SERVICE = "convmlp.v1.Vision"


def vision(name: str, method: str, *messages: Mapping[str, Any] | bytes, **more: Any) -> Rpc:  # noqa: ANN401
    return Rpc(name, f"{VISION_SERVICE}/{method}", messages, **more)


def bearer(name: str) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {KEYS[name]}")]


VISION = [
    vision("models", "ListModels", {}),
    vision("classify", "Classify", {"image": PICTURE}),
    vision(
        "classify, id and top_k", "Classify", {"id": "mine", "image": PICTURE, "top_k": 2, "model": "fake_classify"}
    ),
    vision("classify a turned JPEG", "Classify", {"image": pillow("JPEG", orientation=6), "top_k": 1}),
    vision("detect", "Detect", {"image": PICTURE}),
    vision("detect, parameters", "Detect", {"image": PICTURE, "score_threshold": 0.7, "max_detections": 1}),
    *(
        vision(f"instances, {kind}", "Detect", {"image": PICTURE, "model": "fake_instances", "mask_format": kind})
        for kind in ("MASK_FORMAT_RLE", "MASK_FORMAT_PNG", "MASK_FORMAT_POLYGON", "MASK_FORMAT_NONE")
    ),
    vision("segment", "Segment", {"image": PICTURE}),
    vision("segment, label map", "Segment", {"image": PICTURE, "mask_format": "MASK_FORMAT_NONE", "label_map": True}),
    vision("no image", "Classify", {}),
    vision("truncated", "Classify", {"image": PICTURE[:60]}),
    vision("no picture", "Classify", {"image": NO_PICTURE}),
    vision("too many pixels", "Classify", {"image": huge()}),
    vision("unknown model", "Classify", {"image": PICTURE, "model": "nothing"}),
    vision("model of another task", "Classify", {"image": PICTURE, "model": "fake_detect"}),
    vision("top_k of zero", "Classify", {"image": PICTURE, "top_k": 0}),
    vision("threshold of two", "Detect", {"image": PICTURE, "score_threshold": 2.0}),
    vision("too many detections", "Detect", {"image": PICTURE, "max_detections": 5000}),
    vision("unknown mask format", "Detect", {"image": PICTURE, "mask_format": 9}),
    vision("long id", "Classify", {"image": PICTURE, "id": "x" * 129}),
    vision("malformed message", "Classify", b"\xff\xff\xff"),
    vision("malformed message, models", "ListModels", b"\xff"),
    vision("device fails", "Classify", {"image": png(POISON)}),
    vision("unknown method", "Describe", b""),
    Rpc("unknown service", "convmlp.v9.Vision/Classify", [b""]),
    vision(
        "stream",
        "ClassifyStream",
        {"image": png(3), "top_k": 1},
        {"image": NO_PICTURE},
        {"id": "third", "image": png(4), "top_k": 1},
        b"\xff\xff",
        {"image": PICTURE, "model": "nothing"},
    ),
    vision(
        "stream, detect",
        "DetectStream",
        {"image": PICTURE, "max_detections": 1},
        {"image": PICTURE, "max_detections": 0},
    ),
    vision("stream, segment", "SegmentStream", {"image": PICTURE, "mask_format": "MASK_FORMAT_NONE"}),
    vision("stream of nothing", "ClassifyStream"),
    Rpc("health", "grpc.health.v1.Health/Check"),
    Rpc("health of a service", "grpc.health.v1.Health/Check", [{"service": VISION_SERVICE}]),
    Rpc("health of a model", "grpc.health.v1.Health/Check", [{"service": "fake_classify"}]),
    Rpc("health of nothing", "grpc.health.v1.Health/Check", [{"service": "nothing"}]),
    Rpc("health of all", "grpc.health.v1.Health/List", [b""]),
    vision("no key", "Classify", {"image": PICTURE}, service="strict"),
    vision("no key, models", "ListModels", {}, service="strict"),
    vision("no key, stream", "ClassifyStream", {"image": PICTURE}, service="strict"),
    vision("wrong key", "Classify", {"image": PICTURE}, metadata=[("authorization", "Bearer no")], service="strict"),
    vision("good key", "Classify", {"image": PICTURE, "top_k": 1}, metadata=bearer("alice"), service="strict"),
    vision("too many bytes", "Classify", {"image": PICTURE + bytes(6_000)}, metadata=bearer("alice"), service="strict"),
    vision("too many bytes yet", "Classify", {"image": bytes(80_000)}, metadata=bearer("alice"), service="strict"),
    vision("rate used up", "Classify", {"image": bmp()}, metadata=bearer("bob"), service="strict", before=16),
    vision("no worker", "Classify", {"image": PICTURE}, service="alone"),
    vision("no worker, models", "ListModels", {}, service="alone"),
    vision("no worker, stream", "ClassifyStream", {"image": PICTURE}, service="alone"),
    Rpc("no worker, health", "grpc.health.v1.Health/Check", service="alone"),
]

OIP_SERVICE = "inference.GRPCInferenceService"


def oip(name: str, method: str, *messages: Mapping[str, Any], **more: Any) -> Rpc:  # noqa: ANN401
    return Rpc(name, f"{OIP_SERVICE}/{method}", messages or ({},), **more)


def infer(model: str, *images: bytes, parameters: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:  # noqa: ANN401
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [len(images)]}
    wanted = {"model_name": model, "inputs": [tensor], "raw_input_contents": [data], "parameters": parameters or {}}
    return {**wanted, **fields}


OIP_GRPC = [
    *(oip(name, name) for name in ("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex")),
    *(
        oip(f"metadata of {name}", "ModelMetadata", {"name": name})
        for name in ("fake_classify", "fake_instances", "nothing")
    ),
    *(oip(f"config of {name}", "ModelConfig", {"name": name}) for name in ("fake_classify", "fake_segment", "nothing")),
    *(oip(f"readiness of {name}", "ModelReady", {"name": name}) for name in ("fake_detect", "nothing")),
    oip("readiness of another version", "ModelReady", {"name": "fake_detect", "version": "2"}),
    oip("load", "RepositoryModelLoad", {"model_name": "fake_detect"}),
    oip("unload", "RepositoryModelUnload", {"model_name": "fake_detect"}),
    *(
        oip(name, name)
        for name in (
            "SystemSharedMemoryStatus",
            "SystemSharedMemoryRegister",
            "SystemSharedMemoryUnregister",
            "CudaSharedMemoryStatus",
            "CudaSharedMemoryRegister",
            "CudaSharedMemoryUnregister",
            "TraceSetting",
            "LogSettings",
        )
    ),
    oip("classify", "ModelInfer", infer("fake_classify", PICTURE)),
    oip("classify, two, with id", "ModelInfer", infer("fake_classify", PICTURE, png(9), id="of two")),
    oip("classify, top_k", "ModelInfer", infer("fake_classify", PICTURE, parameters={"top_k": {"int64_param": 2}})),
    oip("classify, one output", "ModelInfer", infer("fake_classify", PICTURE, outputs=[{"name": "labels"}])),
    oip("detect", "ModelInfer", infer("fake_detect", PICTURE)),
    *(
        oip(
            f"instances, masks as {kind}",
            "ModelInfer",
            infer("fake_instances", PICTURE, parameters={"mask_format": {"string_param": kind}}),
        )
        for kind in ("rle", "png", "polygon", "none")
    ),
    oip("segment", "ModelInfer", infer("fake_segment", png(7, 8, 6))),
    oip("unknown model", "ModelInfer", infer("nothing", PICTURE)),
    oip("another version", "ModelInfer", infer("fake_classify", PICTURE, model_version="9")),
    oip("no inputs", "ModelInfer", {"model_name": "fake_classify"}),
    oip(
        "fewer than the shape",
        "ModelInfer",
        infer("fake_classify", PICTURE, inputs=[{"name": "image", "datatype": "BYTES", "shape": [2]}]),
    ),
    oip(
        "another datatype",
        "ModelInfer",
        infer("fake_classify", PICTURE, inputs=[{"name": "image", "datatype": "FP64", "shape": [1]}]),
    ),
    oip("no picture", "ModelInfer", infer("fake_classify", NO_PICTURE)),
    oip("unknown parameter", "ModelInfer", infer("fake_classify", PICTURE, parameters={"top_q": {"int64_param": 2}})),
    oip("top_k of zero", "ModelInfer", infer("fake_classify", PICTURE, parameters={"top_k": {"int64_param": 0}})),
    oip("unknown output", "ModelInfer", infer("fake_classify", PICTURE, outputs=[{"name": "logits"}])),
    oip("device fails", "ModelInfer", infer("fake_classify", png(POISON))),
    oip(
        "stream",
        "ModelStreamInfer",
        infer("fake_classify", PICTURE, id="a", outputs=[{"name": "labels"}]),
        infer("fake_classify", NO_PICTURE, id="b"),
        infer("nothing", PICTURE, id="c"),
        infer("fake_classify", png(9), id="d", outputs=[{"name": "indices"}]),
    ),
    oip(
        "deadline passes",
        "ModelInfer",
        infer("fake_segment", PICTURE, parameters={"timeout": {"int64_param": 700_000}}),
        held=True,
    ),
    oip("statistics", "ModelStatistics", {"name": "fake_classify"}),
    oip("statistics of all", "ModelStatistics"),
    oip("no key", "ModelInfer", infer("fake_classify", PICTURE), service="strict"),
    oip("no key, metadata", "ServerMetadata", service="strict"),
    oip(
        "unloaded", "RepositoryModelUnload", {"model_name": "fake_segment"}, metadata=bearer("carol"), service="strict"
    ),
    oip("index", "RepositoryIndex", metadata=bearer("carol"), service="strict"),
    oip("loaded", "RepositoryModelLoad", {"model_name": "fake_segment"}, metadata=bearer("carol"), service="strict"),
    oip(
        "load what there is not",
        "RepositoryModelLoad",
        {"model_name": "nothing"},
        metadata=bearer("carol"),
        service="strict",
    ),
    oip("no worker: ready", "ServerReady", service="alone"),
    oip("no worker: metadata", "ModelMetadata", {"name": "fake_classify"}, service="alone"),
    oip("no worker: infer", "ModelInfer", infer("fake_classify", PICTURE), service="alone"),
]

COMMANDS = (
    "nothing",
    "rest",
    "rest --http-port x",
    "rest --nothing",
    "serve --models nothing --model-weights other=1",
    "worker --worker-address nowhere",
    "health",
    "health nothing",
    "models list",
    "models show convmlp_pets_breed",
    "models show convmlp_pets_outline --json",
    "models show nothing",
    "classify {png} --url {rest}",
    "classify {png} {pdf} --url {rest} --json",
    "detect {png} --url {rest} --model fake_instances",
    "segment {png} --url {grpc}",
    "classify {png} --url {grpc} --json --top-k 2",
    "classify {png} --url {grpc} --top-k 0",
    "classify {png} --url {rest} --model nothing",
    "classify missing.png --url {rest}",
    "classify {png} --url http://127.0.0.1:9",
)
"""Command lines; {png} and {pdf} are files, {rest} and {grpc} the addresses of the open service's front-ends."""
