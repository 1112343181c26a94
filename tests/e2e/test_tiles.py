"""Large pictures in windows, with real networks: what they find, and that every way to ask gives the same."""

from __future__ import annotations

import io
import json
from pathlib import Path

import httpx2
import numpy as np
import PIL.Image
import pytest

from convmlp_client import Client
from convmlp_client.results import Detections, Segmentation
from model.metrics import ScoredBox, TrueBox, matched_boxes
from model.reference import REFERENCE_PICTURE
from model.types import Box
from tests.e2e.convmlp_process import RunningService
from tests.fork_server import run

ACROSS = 6
"""Times that a mosaic has the reference picture, across and down."""


def mosaic() -> PIL.Image.Image:
    """The reference picture many times, each half as large: its head has some 150 of 1350 pixels."""
    picture = PIL.Image.open(REFERENCE_PICTURE).convert("RGB")
    small = np.asarray(picture.resize((picture.width // 2, picture.height // 2)))
    return PIL.Image.fromarray(np.tile(small, (ACROSS, ACROSS, 1)))


def jpeg(picture: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="module")
def large() -> bytes:
    return jpeg(mosaic())


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_one_window_is_the_plain_call(service: RunningService, task: str) -> None:
    """Tiles as large as the picture change nothing, byte for byte."""
    plain, tiled = (
        httpx2.post(f"{service.url}/{task}{query}", content=REFERENCE_PICTURE.read_bytes(), timeout=60)
        for query in ("", "?tiles=1000")
    )
    assert plain.status_code == 200
    assert tiled.content == plain.content


def test_small_heads_are_found(service: RunningService, large: bytes) -> None:
    """The plain call scales the picture down and misses them; windows find most, and little else."""
    width, height = (side // ACROSS for side in mosaic().size)
    with Client(service.url) as client:
        (head,) = client.detect(jpeg(mosaic().crop((0, 0, width, height)))).detections
        assert not client.detect(large).detections
        found = client.detect(large, tiles="auto", tile_overlap=0.5).detections
    box = head.box
    places = [(column * width, row * height) for column in range(ACROSS) for row in range(ACROSS)]
    truth = [TrueBox(0, Box(box.xmin + left, box.ymin + top, box.xmax + left, box.ymax + top)) for left, top in places]
    answers = [ScoredBox(0, one.score, Box(one.box.xmin, one.box.ymin, one.box.xmax, one.box.ymax)) for one in found]
    assert len(matched_boxes(answers, truth)) >= 0.75 * len(truth)
    assert len(answers) <= 1.25 * len(truth)


def test_every_way_to_ask_gives_the_same(service: RunningService, large: bytes, tmp_path: Path) -> None:
    """REST, gRPC, and the command line without a service cut, predict and join alike."""
    tiles, overlap = "450x300", 0.3
    with Client(service.url) as rest, Client(f"grpc://{service.grpc_address}") as grpc:
        detections = [client.detect(large, tiles=tiles, tile_overlap=overlap) for client in (rest, grpc)]
        segments = [client.segment(large, tiles=tiles, tile_overlap=overlap) for client in (rest, grpc)]
    file = tmp_path / "large.jpg"
    file.write_bytes(large)
    flags = ["--tiles", tiles, "--tile-overlap", str(overlap)]
    status, local, errors = run(["detect", "--local", "--json", str(file), *flags])
    assert status == 0, errors
    boxes = [[round(one.box.xmin) for one in found.detections] for found in detections]
    assert boxes[0]
    assert boxes[0] == boxes[1]
    document = json.loads(local)["results"][0]["detections"]
    assert len(document) == len(boxes[0])
    assert isinstance(detections[0], Detections)
    first, second = (found.label_map() for found in segments if isinstance(found, Segmentation))
    assert np.array_equal(first, second)
    assert {segment.label for segment in segments[0].segments} >= {"background"}
