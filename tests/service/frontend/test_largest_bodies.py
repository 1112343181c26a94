"""The event loop of a front-end process while it reads the largest bodies that its settings allow."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from service.observability.event_loop import REPORT_S
from tests.service.frontend.largest_load import front_end_process, largest_picture

LIMIT_S = 0.5
"""Of the event loop's lag: that of the alert."""


def largest_bodies(picture: bytes) -> dict[str, tuple[str, dict[str, Any]]]:
    """By kind: a path, and what is posted there, nearly as long as the default limit of a body allows."""
    text = base64.b64encode(picture).decode()
    encoded = {"name": "image", "datatype": "BYTES", "shape": [2], "data": [text, text]}
    pixels = {"name": "image", "datatype": "UINT8", "shape": [1, 1000, 1000, 3], "data": [7] * 3_000_000}
    infer = "/v2/models/fake_classify/infer"
    return {
        "bytes": ("/classify", {"content": picture}),
        "form": ("/classify", {"files": [("image", picture)] * 3}),
        "JSON": ("/classify", {"json": {"images": [text, text]}}),
        "Hugging Face": ("/compat/huggingface/classify", {"json": {"inputs": text}}),
        "Open Inference": (infer, {"json": {"inputs": [encoded]}}),
        "Open Inference, numbers": (infer, {"json": {"inputs": [pixels]}}),
    }


async def test_the_largest_bodies_leave_the_event_loop_free() -> None:
    """Whatever the form of a body, its parsing and the decoding of its pictures do not hold up other requests."""
    async with front_end_process() as (_, client):
        for kind, (path, body) in largest_bodies(largest_picture()).items():
            reply = await client.post(path, **body)
            assert reply.status_code == 200, (kind, reply.text)
        await asyncio.sleep(1.5 * REPORT_S)  # the lag of these requests is reported by then
        text = (await client.get("/metrics")).text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        (lag_s,) = [one.value for one in samples if one.name == "convmlp_event_loop_lag_seconds"]
        assert lag_s < LIMIT_S
