"""What is asked in each task, and whether an answer is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import msgspec
import torch

from benchmarks.material import Material
from benchmarks.peers.classifier import NOOP
from benchmarks.servers import OURS, Server
from model.bundle import find_bundle, read_bundle
from model.predictor import Predictor
from model.prove import answer
from model.reference import BOX_IOU, iou
from model.types import Box, DetectResult, QueryParams, SegmentResult
from service.cli.load.http import request_bytes

Check = Callable[[int, bytes], bool]
"""Whether a body is right for the n-th picture. May raise what a decoder raises."""

BODY_BYTES = 100_000
"""Of no-op requests: about a photograph's."""
DETECTOR, SEGMENTER = "convmlp_pets_heads", "convmlp_pets_outline"
MODEL_OF = {"detect": DETECTOR, "segment": SEGMENTER}
SCORE_TOLERANCE = 0.1
AREA_TOLERANCE = 0.03
"""Share of the picture. With `BOX_IOU` these are what bf16 may do to a detection or a segment."""


class _Detection(msgspec.Struct):
    index: int
    score: float
    box: Box


class _Detections(msgspec.Struct):
    detections: list[_Detection]


class _Detected(msgspec.Struct):
    results: list[_Detections]


class _Segment(msgspec.Struct):
    index: int
    area: int


class _Segments(msgspec.Struct):
    segments: list[_Segment]


class _Segmented(msgspec.Struct):
    results: list[_Segments]


def task_requests(
    server: Server, task: str, host: str, material: Material, deadline_s: float | None
) -> tuple[Sequence[bytes], Check]:
    """The requests, sent in turn, and how to check the answers. This service is told the deadline, if there is one."""
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
    expected = expected_answers(task, material.folder)
    return requests, lambda at, body: _agrees(expected[at], body)


@cache
def expected_answers(task: str, folder: Path) -> Sequence[DetectResult | SegmentResult]:
    """Those of the plain fp32 network."""
    torch.set_num_threads(1)
    bundle = read_bundle(find_bundle(MODEL_OF[task], None))
    predictor = Predictor(bundle, torch.device("cpu"))
    results = [answer(predictor, bundle.config, data, QueryParams()) for data in Material(folder).pictures()]
    return [one for one in results if isinstance(one, DetectResult | SegmentResult)]


def _agrees(expected: DetectResult | SegmentResult, body: bytes) -> bool:
    """The best detection is the same, or the largest segment is."""
    if isinstance(expected, SegmentResult):
        (segments,) = msgspec.json.decode(body, type=_Segmented).results
        pixels = expected.size.height * expected.size.width
        wanted, found = expected.segments[0], {one.index: one.area for one in segments.segments}
        return abs(found.get(wanted.index, 0) - wanted.area) <= AREA_TOLERANCE * pixels
    (detected,) = msgspec.json.decode(body, type=_Detected).results
    if not expected.detections:
        return not detected.detections or detected.detections[0].score <= SCORE_TOLERANCE
    best = expected.detections[0]
    return any(
        one.index == best.index and abs(one.score - best.score) <= SCORE_TOLERANCE and iou(one.box, best.box) >= BOX_IOU
        for one in detected.detections
    )
