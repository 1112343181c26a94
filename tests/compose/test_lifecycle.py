"""Containers that are stopped, killed and restarted under load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from model.reference import REFERENCE_PICTURE
from tests.compose.stack import SERVICES, Stack, eventually, send_signal

PICTURE = REFERENCE_PICTURE.read_bytes()
ASKED = 24


async def test_stop_loses_no_request(stack: Stack, figures: list[str]) -> None:
    """`docker compose stop` under load: each request in flight is answered, and every part exits with status 0."""
    async with httpx2.AsyncClient(base_url=f"http://{stack.address('rest', 8000)}", timeout=60) as client:
        assert (await client.post("/detect", content=PICTURE)).status_code == 200
        asked = [asyncio.create_task(client.post("/detect", content=PICTURE)) for _ in range(ASKED)]

        async def all_arrived() -> bool:
            return await _in_flight(client) + sum(one.done() for one in asked) >= ASKED

        await _until(all_arrived)
        unanswered = sum(not one.done() for one in asked)
        stopped_s = time.monotonic()
        await asyncio.to_thread(stack.compose, "stop")
        figures.append(f"stopped with {unanswered} requests in flight in {time.monotonic() - stopped_s:.1f} s")
        replies = await asyncio.gather(*asked)
    assert unanswered > 0  # else this showed nothing
    assert {reply.status_code for reply in replies} == {200}
    for service in SERVICES:
        assert stack.container(service)["State"]["ExitCode"] == 0, service
    await asyncio.to_thread(stack.up, *SERVICES)


async def test_a_killed_worker_fails_clearly_and_comes_back(stack: Stack) -> None:
    """kill -9 of the worker under load: callers get 503 with a reason and Retry-After, Docker restarts the worker, and
    the same front-ends answer later requests."""
    before = stack.container("worker")["State"]["Pid"]
    front_end = stack.container("rest")["State"]["StartedAt"]
    async with httpx2.AsyncClient(base_url=f"http://{stack.address('rest', 8000)}", timeout=60) as client:
        stop, replies = asyncio.Event(), list[httpx2.Response]()
        clients = [asyncio.create_task(_ask(client, stop, replies)) for _ in range(8)]
        await _until(lambda: _answered_with(replies, 200))
        await asyncio.to_thread(send_signal, stack.container("worker")["Id"], signal.SIGKILL)
        await _until(lambda: _answered_with(replies, 503))
        answered = sum(reply.status_code == 200 for reply in replies)

        async def answers_again() -> bool:
            return sum(reply.status_code == 200 for reply in replies) > answered

        await _until(answers_again)
        stop.set()
        await asyncio.gather(*clients)
    assert {reply.status_code for reply in replies} == {200, 503}
    refusals = [reply for reply in replies if reply.status_code == 503]
    assert all("worker" in reply.json()["detail"] or "model" in reply.json()["detail"] for reply in refusals)
    assert all(int(reply.headers["Retry-After"]) >= 0 for reply in refusals)
    worker = stack.container("worker")
    assert worker["State"]["Pid"] not in (0, before)
    assert worker["RestartCount"] >= 1
    assert stack.container("rest")["State"]["StartedAt"] == front_end
    eventually(lambda: all(stack.health(service) == "healthy" for service in SERVICES))


async def _ask(client: httpx2.AsyncClient, stop: asyncio.Event, replies: list[httpx2.Response]) -> None:
    """Send requests until `stop`, with a pause after each refusal."""
    while not stop.is_set():
        reply = await client.post("/classify", content=PICTURE)
        replies.append(reply)
        if reply.status_code != 200:
            await asyncio.sleep(0.2)


async def _answered_with(replies: list[httpx2.Response], status: int) -> bool:
    return any(reply.status_code == status for reply in replies)


async def _in_flight(client: httpx2.AsyncClient) -> float:
    """Images that the front-end has in flight."""
    text = (await client.get("/metrics")).text
    (family,) = [one for one in text_string_to_metric_families(text) if one.name == "convmlp_in_flight_requests"]
    return sum(sample.value for sample in family.samples)


async def _until(condition: Callable[[], Awaitable[bool]], seconds: float = 120.0) -> None:
    """Wait until `condition()` holds; a deadline, not a measurement."""
    started_s = time.monotonic()
    while not await condition():
        assert time.monotonic() - started_s < seconds
        await asyncio.sleep(0.05)
