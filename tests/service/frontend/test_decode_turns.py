"""Turns in decoding, through a real front-end with one thread: large pictures do not hold up small ones or others'."""

from __future__ import annotations

import asyncio
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.service.frontend.rest_server import Rest, open_rest, picture
from tests.waiting import until

KEYS = {"many": "0123456789abcdef", "another": "fedcba9876543210"}


def large() -> bytes:
    _, jpeg = cv2.imencode(".jpg", np.zeros((2400, 3200, 3), np.uint8))
    return jpeg.tobytes()


async def order_of(rest: Rest, last: bytes, caller: str) -> list[str]:
    """The names in which requests end: eight with large pictures of the caller "many", then the `last` one."""
    ended: list[str] = []

    async def send(name: str, image: bytes, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        response = await rest.http.post("/classify", content=image, headers=headers)
        assert response.status_code == 200
        ended.append(name)

    tasks = [asyncio.create_task(send("large", large(), KEYS["many"])) for _ in range(8)]
    await until(lambda: rest.engine.threads.waiting == 7)
    tasks.append(asyncio.create_task(send("last", last, KEYS[caller])))
    await asyncio.gather(*tasks)
    return ended


@pytest.mark.parametrize(
    ("last", "caller"),
    [(picture(), "many"), (picture(), "another"), (large(), "another")],
    ids=["its own small picture", "another's small picture", "another's large picture"],
)
async def test_large_pictures_hold_up_nobody(last: bytes, caller: str, tmp_path: Path) -> None:
    """The last request is answered after those that had begun and one more, not after all."""
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{name} {key}\n" for name, key in KEYS.items()))
    async with open_rest(prepare_threads=1, api_keys_file=keys) as rest:
        assert (await order_of(rest, last, caller)).index("last") <= 4
