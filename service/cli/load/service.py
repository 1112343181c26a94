"""A running service as something to load: over REST by prepared requests, over gRPC by the project's own client."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import msgspec

from convmlp_client.aio import AsyncClient
from convmlp_client.errors import ClientError, RetryLater
from convmlp_client.transport import parse_url
from model.types import Task
from service.cli.load.http import ConnectionBroken, Connections, Response, request_bytes
from service.cli.load.outcome import ANSWERED, Ask, Ending, Outcome

GRACE_S = 0.5
"""What an answer may take on its way beyond the time that the service was given: its own words are better than ours."""
TIMED_OUT = Outcome(Ending.FAILED, "no answer in time")
REFUSALS = (429, 503)


@asynccontextmanager
async def open_ask(
    url: str, task: Task, pictures: Sequence[bytes], *, model: str | None, timeout_s: float, api_key: str | None
) -> AsyncIterator[Ask]:
    """How to ask the service at `url` about the n-th picture, round and round. One event loop may use it.

    Raises:
        ValueError: no service can be asked so.
    """
    opened = _rest if parse_url(url).scheme.startswith("http") else _grpc
    async with opened(url, task, pictures, model, timeout_s, api_key) as ask:
        yield ask


@asynccontextmanager
async def _rest(
    url: str, task: Task, pictures: Sequence[bytes], model: str | None, timeout_s: float, api_key: str | None
) -> AsyncIterator[Ask]:
    parts = parse_url(url)
    headers = {"X-Request-Timeout-Ms": str(max(1, round(timeout_s * 1000)))}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    path = f"{parts.path.rstrip('/')}/{task.value}" + (f"?{urlencode({'model': model})}" if model else "")
    host = parts.netloc.rpartition("@")[2]
    requests = [request_bytes("POST", host, path, headers, picture) for picture in pictures]
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    async with Connections(parts.hostname or "", port, tls) as connections:

        async def ask(number: int) -> Outcome:
            try:
                return outcome_of(await connections.ask(requests[number % len(requests)], timeout_s + GRACE_S))
            except TimeoutError:
                return TIMED_OUT
            except ConnectionBroken as error:
                return Outcome(Ending.FAILED, str(error))

        yield ask


@asynccontextmanager
async def _grpc(
    url: str, task: Task, pictures: Sequence[bytes], model: str | None, timeout_s: float, api_key: str | None
) -> AsyncIterator[Ask]:
    # The loops are the bound on what is in hand.
    async with AsyncClient(url, timeout_s=timeout_s, api_key=api_key, retries=0, max_concurrency=10_000) as client:
        methods: dict[Task, Callable[..., Awaitable[object]]] = {
            Task.CLASSIFY: client.classify,
            Task.DETECT: client.detect,
            Task.SEGMENT: client.segment,
        }
        call = methods[task]
        parameters: dict[str, Any] = {} if model is None else {"model": model}

        async def ask(number: int) -> Outcome:
            try:
                await call(pictures[number % len(pictures)], **parameters)
            except RetryLater as error:
                return Outcome(Ending.REFUSED, error.code)
            except ClientError as error:
                return Outcome(Ending.FAILED, error.code)
            return ANSWERED

        yield ask


class _Problem(msgspec.Struct):
    """What matters here of problem+json."""

    type: str = ""


def outcome_of(response: Response) -> Outcome:
    """What a response of this service means; of an error its code, or the status where it has none."""
    if response.status == 200:
        return ANSWERED
    try:
        code = msgspec.json.decode(response.body, type=_Problem).type.rpartition("/")[2]
    except msgspec.DecodeError:
        code = ""
    return Outcome(Ending.REFUSED if response.status in REFUSALS else Ending.FAILED, code or f"HTTP {response.status}")
