"""Hundreds of bad inputs to one whole service: each gets a clear answer in time, and the service stays as it was."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import httpx2

from tests.e2e.bad_inputs import GrpcInput, HttpInput, RawInput, encoded, grpc_inputs, http_inputs, raw_inputs
from tests.e2e.convmlp_process import RunningService, running_service

TIMEOUT_MS = 20_000
"""The deadline that the callers set."""
HANG_S = TIMEOUT_MS / 1000 + 10.0
AT_ONCE = 8
LEAK_BYTES = 64 << 20
"""What a process may have more after the second round than after the first: the allocator keeps freed memory."""
RETRIED = {503, 504}
CALLERS_FAULT = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "FAILED_PRECONDITION"})
PARTS = ("worker-0", "rest-0", "grpc-0")

Input = TypeVar("Input", HttpInput, RawInput, GrpcInput)


async def test_hundreds_of_bad_inputs() -> None:
    """Each bad input, over REST, gRPC, the Open Inference Protocol and Hugging Face's routes, ends before its deadline,
    in an error of its caller's that has a reason; the service is not to blame for any. It is ready afterwards, no
    process was replaced, and none has grown."""
    with running_service() as service:
        async with clients(service) as (http, channel):
            before = {part: service.pid_of(part) for part in PARTS}
            ended = await one_round(service, http, channel)
            grown = {part: -resident_bytes(before[part]) for part in PARTS}
            assert await one_round(service, http, channel) == ended
            for part in PARTS:
                grown[part] += resident_bytes(before[part])
            assert sum(ended.values()) > 400
            assert {part: service.pid_of(part) for part in PARTS} == before
            assert max(grown.values()) < LEAK_BYTES, grown
            assert (await http.get("/readyz")).status_code == 200
            assert (await http.post("/classify", content=encoded("JPEG"))).status_code == 200


@asynccontextmanager
async def clients(service: RunningService) -> AsyncIterator[tuple[httpx2.AsyncClient, grpc.aio.Channel]]:
    async with (
        httpx2.AsyncClient(base_url=service.url, timeout=HANG_S) as http,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
    ):
        yield http, channel


async def one_round(service: RunningService, http: httpx2.AsyncClient, channel: grpc.aio.Channel) -> Counter[str]:
    """How many inputs of each transport there were."""
    return Counter(
        {
            "HTTP": await each(http_inputs(), lambda one: post(http, one)),
            "connections": await each(raw_inputs(), lambda one: send(service, one)),
            "gRPC": await each(grpc_inputs(), lambda one: call(channel, one)),
        }
    )


async def each(inputs: Iterable[Input], handle: Callable[[Input], Coroutine[Any, Any, None]]) -> int:
    """Handle all, `AT_ONCE` at a time; their number."""
    room = asyncio.Semaphore(AT_ONCE)
    wrong: list[str] = []

    async def one(item: Input) -> None:
        async with room:
            try:
                await asyncio.wait_for(handle(item), HANG_S)
            except Exception as error:  # all wrong ones are reported together
                wrong.append(f"{item.name}: {error!r:.300}")

    tasks = [asyncio.create_task(one(item)) for item in inputs]
    await asyncio.gather(*tasks)
    assert not wrong, "\n".join(wrong)
    return len(tasks)


async def post(http: httpx2.AsyncClient, one: HttpInput) -> None:
    headers = {"X-Request-Timeout-Ms": str(TIMEOUT_MS), **one.headers}
    reply = await http.post(one.path, content=one.body, headers=headers)
    if one.may_pass and reply.status_code == 200:
        return
    check_error(reply.status_code, reply.headers, reply.content)


def check_error(status: int, headers: Any, body: bytes) -> None:  # noqa: ANN401
    """Of the caller, or for a while; with a reason."""
    assert 400 <= status < 500 or status in RETRIED, (status, body[:200])
    if status == 503:
        assert headers["retry-after"].isdigit()
    assert headers["content-type"] in ("application/problem+json", "application/json"), headers
    document = json.loads(body)
    assert document["status"] == status
    assert document["detail"]


async def send(service: RunningService, one: RawInput) -> None:
    host, _, port = service.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(one.data)
        writer.write_eof()
        answer = await reader.read()
    except ConnectionResetError:  # it had not read all of what is too long
        return
    finally:
        writer.close()
    if answer:
        head, _, _ = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        assert 400 <= status < 500 or status in (501, 505), head


async def call(channel: grpc.aio.Channel, one: GrpcInput) -> None:
    timeout_s = TIMEOUT_MS / 1000 if one.timeout_s is None else one.timeout_s
    method: Any = channel.unary_unary(one.method)
    calling = method(one.message, timeout=timeout_s)
    code, details = (await calling.code()).name, await calling.details()
    if one.timeout_s is not None:
        assert code == "DEADLINE_EXCEEDED", details
    elif code == "OK":
        assert one.may_pass, "it was answered"
    else:
        assert code in CALLERS_FAULT, (code, details)
        assert details, code


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (line,) = [one for one in status.splitlines() if one.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024
