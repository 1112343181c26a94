"""Callers of one front-end whose images wait for the same threads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.service.frontend.rest_server import Rest, open_rest, picture
from tests.waiting import until

GREEDY, MODEST = "0123456789abcdef", "fedcba9876543210"
MANY, FEW = 16, 3
SIDE = 1500
"""Of pictures that take some 10 ms to decode."""


def large() -> bytes:
    return picture(width=SIDE, height=SIDE, form="JPEG")


async def send(rest: Rest, key: str, body: bytes, answered: list[str]) -> None:
    reply = await rest.http.post("/classify", content=body, headers={"Authorization": f"Bearer {key}"})
    assert reply.status_code == 200, reply.text
    answered.append(key)


@pytest.mark.parametrize("body", [picture(), large()], ids=["small pictures", "pictures as large"])
async def test_a_flood_of_large_pictures_starves_no_other_caller(body: bytes, tmp_path: Path) -> None:
    """While many large pictures of one caller wait to be decoded, another caller's requests, one after the other, are
    answered long before them."""
    keys = tmp_path / "keys"
    keys.write_text(f"greedy {GREEDY}\nmodest {MODEST}\n")
    answered: list[str] = []
    async with open_rest(api_keys_file=keys, prepare_threads=1) as rest:
        flood = [asyncio.create_task(send(rest, GREEDY, large(), answered)) for _ in range(MANY)]
        await until(lambda: rest.engine.threads.waiting >= MANY - 4)
        for _ in range(FEW):
            await send(rest, MODEST, body, answered)
        ahead = answered.count(GREEDY)
        await asyncio.gather(*flood)
    assert ahead <= MANY / 2, answered
