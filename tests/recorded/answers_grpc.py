"""Requests over gRPC, in the order in which they are asked."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from tests.recorded.answers import (
    KEYS,
    NO_PICTURE,
    PICTURE,
    Rpc,
    bmp,
    huge,
    pillow,
    png,
)
from tests.recorded.starter import POISON

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
    vision("analyze", "Analyze", {"image": PICTURE, "top_k": 1}),
    vision("analyze, models", "Analyze", {"id": "mine", "image": PICTURE, "models": ["fake_segment", "fake_detect"]}),
    vision("analyze, a task twice", "Analyze", {"image": PICTURE, "tasks": ["TASK_DETECT", "TASK_DETECT"]}),
    vision("embed", "Embed", {"image": PICTURE}),
    vision("embed, normalized", "Embed", {"image": PICTURE, "normalize": True, "model": "fake_classify"}),
    vision("embed with a detector", "Embed", {"image": PICTURE, "model": "fake_detect"}),
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
