"""Batches of the whole service."""

from __future__ import annotations

import asyncio
import io

import httpx2
import numpy as np
import PIL.Image
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.convmlp_process import RunningService
from tests.kept_measurements import BATCH_IMAGES
from tests.waiting import eventually


def jpeg_of(shade: int, size: tuple[int, int] = (300, 260)) -> bytes:
    """An image with some structure, different for every shade, as JPEG."""
    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([(rows + shade * 7) % 256, (columns * 2 + shade) % 256, (rows * columns // 97) % 256], axis=2)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


async def test_an_answer_does_not_depend_on_its_batch(service: RunningService) -> None:
    """Concurrent requests form batches, as /metrics shows, and get the answers that they get alone."""
    pictures = [jpeg_of(shade) for shade in range(3 * BATCH_IMAGES)]
    async with httpx2.AsyncClient(base_url=service.url, timeout=120) as client:
        before = await batches_above_one(client)
        for path in ("/classify?top_k=37", "/detect", "/segment"):
            alone = [(await client.post(path, content=one)).json()["results"][0] for one in pictures]
            together = await asyncio.gather(*(client.post(path, content=one) for one in pictures))
            for expected, reply in zip(alone, together, strict=True):
                assert_close(reply.json()["results"][0], expected)
        await eventually(lambda: formed_batches(client, before))


async def formed_batches(client: httpx2.AsyncClient, before: float) -> bool:
    return await batches_above_one(client) > before


async def batches_above_one(client: httpx2.AsyncClient) -> float:
    """The number of batches of two or more images so far, from /metrics."""
    text = (await client.get("/metrics")).text
    (family,) = [one for one in text_string_to_metric_families(text) if one.name == "convmlp_batch_size"]
    counts = {"total": 0.0, "single": 0.0}
    for sample in family.samples:
        if sample.name.endswith("_count"):
            counts["total"] += sample.value
        elif sample.name.endswith("_bucket") and float(sample.labels["le"]) == 1.0:
            counts["single"] += sample.value
    return counts["total"] - counts["single"]


def assert_close(found: object, expected: object) -> None:
    """Equal up to the last digits of floats, and 1 % of areas."""
    match expected:
        case dict():
            assert isinstance(found, dict)
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                if key == "mask":
                    continue  # border pixels may differ; `area` bounds how many
                if key == "area":
                    assert found[key] == pytest.approx(value, rel=0.01, abs=50)
                else:
                    assert_close(found[key], value)
        case list():
            assert isinstance(found, list)
            assert len(found) == len(expected)
            for one, other in zip(found, expected, strict=True):
                assert_close(one, other)
        case float():
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-2 if expected > 1 else 1e-4)
        case _:
            assert found == expected
