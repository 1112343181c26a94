"""Static types of the public API. mypy checks this file in `make lint`; nothing runs it.

An unused `type: ignore` is an error, so each of them proves that mypy rejects the line.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import PIL.Image

from convmlp_client import (
    AsyncClient,
    Classification,
    Client,
    ClientError,
    Detection,
    Detections,
    Label,
    Mask,
    MaskFormat,
    Model,
    Outcome,
    Retries,
    Segment,
    Segmentation,
    Task,
)


def sync_results(client: Client, path: Path, array: npt.NDArray[np.uint8], image: PIL.Image.Image) -> None:
    assert_type(client.classify(path, top_k=3, model="name", timeout_s=1.0), Classification)
    assert_type(client.detect(array, score_threshold=0.5, max_detections=3, masks=False), Detections)
    assert_type(client.segment(image, mask_format="png"), Segmentation)
    assert_type(client.models(), tuple[Model, ...])
    assert_type(client.ready(), bool)
    with client as same:
        assert_type(same, Client)


def sync_outcomes(client: Client, paths: list[Path]) -> None:
    outcomes = client.detect_many(paths, concurrency=4, ordered=False, mask_format="rle")
    assert_type(outcomes, Generator[Outcome[Path, Detections], None, None])
    for outcome in outcomes:
        assert_type(outcome.image, Path)
        assert_type(outcome.result, Detections)
        assert_type(outcome.answer, Detections | None)
        assert_type(outcome.error, Exception | None)
    assert_type(client.classify_many([b""]), Generator[Outcome[bytes, Classification], None, None])
    assert_type(client.segment_many(iter([""])), Generator[Outcome[str, Segmentation], None, None])


async def async_results(client: AsyncClient, source: AsyncIterator[bytes]) -> None:
    assert_type(await client.classify("cat.jpg"), Classification)
    assert_type(await client.detect(b""), Detections)
    assert_type(await client.segment(b""), Segmentation)
    assert_type(await client.models(), tuple[Model, ...])
    assert_type(client.classify_many(source), AsyncGenerator[Outcome[bytes, Classification], None])
    assert_type(client.detect_many(["cat.jpg"]), AsyncGenerator[Outcome[str, Detections], None])
    async with client as same:
        assert_type(same, AsyncClient)


def fields(labels: Classification, found: Detections, segments: Segmentation, error: ClientError) -> None:
    assert_type(labels.labels, tuple[Label, ...])
    assert_type(found.detections, tuple[Detection, ...])
    assert_type(found.detections[0].mask, Mask | None)
    assert_type(segments.segments, tuple[Segment, ...])
    assert_type(segments.draw("cat.jpg"), PIL.Image.Image)
    assert_type(segments.label_map(), npt.NDArray[np.uint8] | npt.NDArray[np.uint16])
    assert_type(found.to_dict(), dict[str, Any])
    assert_type(labels.meta.task, Task)
    assert_type(error.retry_after_s, float | None)


def rejected(client: Client, mask_format: MaskFormat, floats: npt.NDArray[np.float32]) -> None:
    client.classify("cat.jpg", topk=3)  # type: ignore[call-arg]
    client.classify("cat.jpg", mask_format=mask_format)  # type: ignore[call-arg]
    client.detect("cat.jpg", mask_format="zip")  # type: ignore[arg-type]
    client.segment(3)  # type: ignore[arg-type]
    client.classify(floats)  # type: ignore[arg-type]
    client.classify_many("cat.jpg", concurrency="4")  # type: ignore[arg-type]
    Client("http://127.0.0.1:8000", retries=Retries(), compression="zip")  # type: ignore[arg-type]
