"""The requests of each task, and the check of their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import msgspec
import torch

from benchmarks.material import Material
from benchmarks.peers.classifier import NOOP
from benchmarks.servers import OURS, Server, models_of
from model.bundle import Bundle, find_bundle, read_bundle
from model.predictor import Predictor, predict_image
from model.reference import BOX_IOU, iou
from model.types import Box, DetectResult, QueryParams, SegmentResult
from service.cli.load.http import request_bytes
from service.settings import usable_cores

Check = Callable[[int, bytes], bool]
"""Whether a body is the right answer for the n-th picture. Raises what its decoder raises."""

BODY_BYTES = 100_000
"""Bytes of a no-op request: about those of a photograph."""
SCORE_TOLERANCE = 0.1
AREA_TOLERANCE = 0.05
"""Share of pixels that may have another class. This and `BOX_IOU` are the tolerance for bf16."""


class Detection(msgspec.Struct):
    index: int
    score: float
    box: Box


class Detections(msgspec.Struct):
    """By falling score."""

    detections: list[Detection]


class _Detected(msgspec.Struct):
    results: list[Detections]


class Segment(msgspec.Struct):
    index: int
    area: int


class Segments(msgspec.Struct):
    """Together they cover all pixels of a picture."""

    segments: list[Segment]


class _Segmented(msgspec.Struct):
    results: list[Segments]


Expected = Detections | Segments


def task_requests(
    server: Server, task: str, host: str, material: Material, deadline_s: float | None
) -> tuple[Sequence[bytes], Check]:
    """The requests, sent in turn, and the check of their answers. This service gets the deadline, if there is one."""
    if server.who.network == NOOP:
        return [server.request(host, bytes(BODY_BYTES), server.path)], lambda _, body: server.read(body) >= 0
    pictures = material.pictures()
    headers = {} if deadline_s is None else {"X-Request-Timeout-Ms": str(round(deadline_s * 1000))}
    if server.who.server == OURS:
        requests = [request_bytes("POST", host, f"/{task}", headers, picture) for picture in pictures]
    else:
        requests = [server.request(host, picture, server.path) for picture in pictures]
    if task == "classify":
        classes = material.classes()
        return requests, lambda at, body: server.read(body) == classes[at]
    expected = expected_answers(models_of(server.who)[task], material)
    return requests, lambda at, body: agrees(expected[at], body)


@cache
def expected_answers(model: str, material: Material) -> Sequence[Expected]:
    """The answers of the plain fp32 network, computed once for a bundle's weights and the material's pictures."""
    bundle = read_bundle(find_bundle(model, material.models_dir))
    path = material.expected_dir / f"{model}-{bundle.config.weights_sha256[:16]}.json"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(msgspec.json.encode(list(_computed(bundle, material))))
    form = list[Detections] if bundle.config.task == "detect" else list[Segments]
    return msgspec.json.decode(path.read_bytes(), type=form)


def _computed(bundle: Bundle, material: Material) -> Iterator[Expected]:
    torch.set_num_threads(usable_cores())
    predictor = Predictor(bundle, torch.device("cpu"))
    for data in material.pictures():
        match predict_image(predictor, bundle.config, data, QueryParams()):
            case DetectResult(detections=detections):
                yield Detections([Detection(one.index, one.score, one.box) for one in detections])
            case SegmentResult(segments=segments):
                yield Segments([Segment(one.index, one.area) for one in segments])


def agrees(expected: Expected, body: bytes) -> bool:
    """Whether the best detection was found, or almost all pixels can have the right class."""
    if isinstance(expected, Segments):
        (segments,) = msgspec.json.decode(body, type=_Segmented).results
        wanted = {one.index: one.area for one in expected.segments}
        found = {one.index: one.area for one in segments.segments}
        shared = sum(min(area, found.get(index, 0)) for index, area in wanted.items())
        return shared >= (1 - AREA_TOLERANCE) * sum(wanted.values())
    (detected,) = msgspec.json.decode(body, type=_Detected).results
    if not expected.detections:
        return not detected.detections or detected.detections[0].score <= SCORE_TOLERANCE
    best = expected.detections[0]
    return any(
        one.index == best.index and abs(one.score - best.score) <= SCORE_TOLERANCE and iou(one.box, best.box) >= BOX_IOU
        for one in detected.detections
    )
