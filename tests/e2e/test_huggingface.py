"""Hugging Face's unmodified client and the whole service with its embedded models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import PIL.Image
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient, close_session
from huggingface_hub.errors import HfHubHTTPError

from model.reference import REFERENCE_PICTURE
from tests.e2e.convmlp_process import RunningService


@pytest.fixture(scope="module", autouse=True)
def _session() -> Iterator[None]:
    """Close the session that the client keeps for the whole process."""
    yield
    close_session()


def client_of(service: RunningService, task: str) -> InferenceClient:
    return InferenceClient(model=f"{service.url}/compat/huggingface/{task}")


def rest_answer(service: RunningService, path: str) -> dict[str, list[dict[str, object]]]:
    """The REST API's result for the same photograph."""
    reply = httpx2.post(f"{service.url}{path}", content=REFERENCE_PICTURE.read_bytes(), timeout=60)
    return dict(reply.json()["results"][0])


def test_labels_equal_those_of_rest(service: RunningService) -> None:
    """The labels equal those of /classify, whether the image is a path or bytes."""
    expected = [(row["label"], row["score"]) for row in rest_answer(service, "/classify?top_k=3")["labels"]]
    for image in (str(REFERENCE_PICTURE), Path(REFERENCE_PICTURE), REFERENCE_PICTURE.read_bytes()):
        rows = client_of(service, "classify").image_classification(image, top_k=3)
        assert [(row.label, row.score) for row in rows] == expected
    assert len(client_of(service, "classify").image_classification(REFERENCE_PICTURE)) == 5


def test_boxes_equal_those_of_rest(service: RunningService) -> None:
    """The boxes are those of /detect in whole pixels; a threshold drops those that score lower."""
    expected = rest_answer(service, "/detect?mask_format=none")["detections"]
    rows = client_of(service, "detect").object_detection(REFERENCE_PICTURE)
    assert [(row.label, row.score) for row in rows] == [(one["label"], one["score"]) for one in expected]
    for row, one in zip(rows, expected, strict=True):
        assert isinstance(one["box"], dict)
        assert all(abs(row.box[side] - one["box"][side]) <= 0.51 for side in ("xmin", "ymin", "xmax", "ymax"))
    above = client_of(service, "detect").object_detection(REFERENCE_PICTURE, threshold=0.5)
    assert above == [row for row in rows if row.score > 0.5]
    assert above[0].label == "cat"


def test_masks_equal_those_of_rest(service: RunningService) -> None:
    """Each mask has the area that /segment answers, and each pixel is in exactly one."""
    expected = rest_answer(service, "/segment?masks=false")["segments"]
    # The class declares the mask as a string; the client puts an image there.
    rows: list[Any] = [*client_of(service, "segment").image_segmentation(REFERENCE_PICTURE, subtask="semantic")]
    assert [row.label for row in rows] == [one["label"] for one in expected]
    assert all(isinstance(row.mask, PIL.Image.Image) for row in rows)
    masks = [np.asarray(row.mask) > 0 for row in rows]
    assert [mask.sum() for mask in masks] == [one["area"] for one in expected]
    assert np.array_equal(np.sum(masks, axis=0), np.ones((300, 451)))


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes/text content.:DeprecationWarning")
async def test_the_async_client_gets_the_same_answer(service: RunningService) -> None:
    """The async client returns what the sync one returns."""
    async with AsyncInferenceClient(model=f"{service.url}/compat/huggingface/classify") as client:
        rows = await client.image_classification(str(REFERENCE_PICTURE))
    assert rows == client_of(service, "classify").image_classification(REFERENCE_PICTURE)


def test_errors_have_the_services_message(service: RunningService) -> None:
    """The client's error about a bad image or parameter has the service's message."""
    with pytest.raises(HfHubHTTPError, match="image format is not supported"):
        client_of(service, "classify").image_classification(b"not an image")
    with pytest.raises(HfHubHTTPError, match="no served model does the subtask 'panoptic'"):
        client_of(service, "segment").image_segmentation(REFERENCE_PICTURE, subtask="panoptic")
