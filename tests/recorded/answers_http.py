"""Requests over HTTP, in the order in which they are asked."""

from __future__ import annotations

import gzip
import struct
from typing import Any

from tests.recorded.answers import (
    FORM,
    JSON,
    NO_PICTURE,
    PICTURE,
    Http,
    b64,
    bmp,
    document,
    form,
    gradient,
    huge,
    key,
    pillow,
    png,
)
from tests.recorded.starter import POISON

REST = [
    Http("liveness", "GET /livez"),
    Http("readiness", "GET /readyz"),
    Http("models", "GET /models"),
    Http("one model", "GET /models/fake_classify"),
    Http("one model that there is not", "GET /models/nothing"),
    *(Http(f"page {path}", f"GET {path}") for path in ("/", "/docs", "/web/playground/main.js", "/web/docs.js")),
    *(Http(f"page {path}", f"GET {path}") for path in ("/web/style.css", "/web/samples/tabby.jpg")),
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
    Http("analyze", "POST /analyze?top_k=1", PICTURE),
    Http("analyze, models", "POST /analyze?models=fake_segment,fake_detect&mask_format=none", PICTURE),
    Http("analyze, unknown task", "POST /analyze?tasks=classify,fly", PICTURE),
    Http("analyze, another task's parameter", "POST /analyze?tasks=segment&top_k=3", PICTURE),
    Http("analyze no picture", "POST /analyze", NO_PICTURE),
    Http("analyze, drawn", "POST /analyze", gradient(), {"Accept": "image/png"}),
    Http("detect in tiles", "POST /detect?tiles=48", PICTURE),
    Http("segment in tiles", "POST /segment?tiles=48&tile_overlap=0.5", PICTURE),
    Http("too many tiles", "POST /detect?tiles=32&tile_overlap=0.8", png(width=800, height=600)),
    Http("unknown tiles", "POST /detect?tiles=small", PICTURE),
    Http("embed", "POST /embed", PICTURE),
    Http("embed, base64", "POST /embed?encoding=base64&normalize=true&model=fake_classify", PICTURE),
    Http("embed, unknown encoding", "POST /embed?encoding=hex", PICTURE),
    Http("embed with a detector", "POST /embed?model=fake_detect", PICTURE),
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
    Http("classify, gzip taken", CLASSIFY, pixels_in_json(), {"Accept-Encoding": "gzip"}),
    Http("classify, gzip sent", CLASSIFY, gzip.compress(pixels_in_json()), {"Content-Encoding": "gzip"}),
    Http("classify, broken gzip", CLASSIFY, b"{}", {"Content-Encoding": "gzip"}),
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
