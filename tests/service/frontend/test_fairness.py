"""Callers of one front-end whose images wait for the same threads."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.service.frontend.held_threads import held_threads
from tests.service.frontend.rest_server import Rest, open_rest, picture
from tests.waiting import until

GREEDY, MODEST = "0123456789abcdef", "fedcba9876543210"
MANY, FEW = 32, 3
SIDE = 1500
"""Of pictures that take some 10 ms to decode."""


def large() -> bytes:
    return picture(width=SIDE, height=SIDE, form="JPEG")


def with_two_keys(folder: Path) -> Path:
    """A file of two callers' keys."""
    keys = folder / "keys"
    keys.write_text(f"greedy {GREEDY}\nmodest {MODEST}\n")
    return keys


async def send(rest: Rest, key: str, body: bytes, answered: list[str]) -> None:
    reply = await rest.http.post("/classify", content=body, headers={"Authorization": f"Bearer {key}"})
    assert reply.status_code == 200, reply.text
    answered.append(key)


@pytest.mark.parametrize("body", [picture(), large()], ids=["small pictures", "pictures as large"])
async def test_a_flood_of_large_pictures_starves_no_other_caller(body: bytes, tmp_path: Path) -> None:
    """While many large pictures of one caller wait to be decoded, another caller's requests, one after the other, are
    answered long before them."""
    answered: list[str] = []
    async with open_rest(api_keys_file=with_two_keys(tmp_path), prepare_threads=1) as rest:
        async with held_threads(rest.engine.threads):
            flood = [asyncio.create_task(send(rest, GREEDY, large(), answered)) for _ in range(MANY)]
            await until(lambda: rest.engine.threads.waiting == MANY)
            first = asyncio.create_task(send(rest, MODEST, body, answered))
            await until(lambda: rest.engine.threads.waiting == MANY + 1)
        await first
        for _ in range(FEW - 1):
            await send(rest, MODEST, body, answered)
        ahead = answered.count(GREEDY)
        await asyncio.gather(*flood)
    assert ahead <= MANY / 2, answered


async def test_a_small_picture_does_not_wait_for_all_large_ones_of_its_caller() -> None:
    """Callers behind one address are one caller: their small pictures take turns with the large ones."""
    ended: list[str] = []
    async with open_rest(prepare_threads=1) as rest:

        async def post(name: str, body: bytes) -> None:
            assert (await rest.http.post("/classify", content=body)).status_code == 200
            ended.append(name)

        async with held_threads(rest.engine.threads):
            posts = [asyncio.create_task(post("large", large())) for _ in range(MANY)]
            await until(lambda: rest.engine.threads.waiting == MANY)
            posts.append(asyncio.create_task(post("small", picture())))
            await until(lambda: rest.engine.threads.waiting == MANY + 1)
        await asyncio.gather(*posts)
    assert ended.index("small") <= MANY / 2, ended


async def test_one_caller_cannot_take_all_places(tmp_path: Path) -> None:
    """Of ten images in progress a caller may have eight, and others the rest; beyond it each is refused with 503."""
    async with open_rest(api_keys_file=with_two_keys(tmp_path), max_in_flight=10) as rest:
        rest.worker.runner.unblocked.clear()

        async def post(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            return (await rest.http.post("/classify", content=picture(), headers=headers)).status_code

        flood = [asyncio.create_task(post(GREEDY)) for _ in range(MANY)]
        await until(lambda: sum(one.done() for one in flood) == MANY - 8)
        others = [asyncio.create_task(post(MODEST)) for _ in range(2)]
        await rest.until("convmlp_in_flight_requests", 10)
        rest.worker.runner.unblocked.set()
        assert Counter(await asyncio.gather(*flood)) == {200: 8, 503: MANY - 8}
        assert await asyncio.gather(*others) == [200, 200]
