"""Requests to a running service under load: prepared bytes over REST, the project's client over gRPC."""

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
from service.cli.load.loops import ANSWERED, Outcome, Sender, Status

GRACE_S = 0.5
"""How long a reply may take beyond the deadline that the service knows: its error is clearer than a timeout here."""
TIMED_OUT = Outcome(Status.FAILED, "timed out")
REFUSALS = (429, 503)


@asynccontextmanager
async def open_sender(
    url: str, task: Task, images: Sequence[bytes], *, model: str | None, timeout_s: float, api_key: str | None
) -> AsyncIterator[Sender]:
    """A sender that sends the encoded images in turn to the service at `url`. For one event loop.

    Raises:
        ValueError: the URL or the key is malformed.
    """
    opened = _rest if parse_url(url).scheme.startswith("http") else _grpc
    async with opened(url, task, images, model, timeout_s, api_key) as send:
        yield send


@asynccontextmanager
async def _rest(
    url: str, task: Task, images: Sequence[bytes], model: str | None, timeout_s: float, api_key: str | None
) -> AsyncIterator[Sender]:
    parts = parse_url(url)
    headers = {"X-Request-Timeout-Ms": str(max(1, round(timeout_s * 1000)))}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    path = f"{parts.path.rstrip('/')}/{task.value}" + (f"?{urlencode({'model': model})}" if model else "")
    host = parts.netloc.rpartition("@")[2]
    requests = [request_bytes("POST", host, path, headers, image) for image in images]
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    async with Connections(parts.hostname or "", port, tls) as connections:

        async def send(number: int) -> Outcome:
            try:
                return outcome_of(await connections.request(requests[number % len(requests)], timeout_s + GRACE_S))
            except TimeoutError:
                return TIMED_OUT
            except ConnectionBroken as error:
                return Outcome(Status.FAILED, str(error))

        yield send


@asynccontextmanager
async def _grpc(
    url: str, task: Task, images: Sequence[bytes], model: str | None, timeout_s: float, api_key: str | None
) -> AsyncIterator[Sender]:
    # The loops bound the requests in flight.
    async with AsyncClient(url, timeout_s=timeout_s, api_key=api_key, retries=0, max_concurrency=10_000) as client:
        methods: dict[Task, Callable[..., Awaitable[object]]] = {
            Task.CLASSIFY: client.classify,
            Task.DETECT: client.detect,
            Task.SEGMENT: client.segment,
        }
        call = methods[task]
        parameters: dict[str, Any] = {} if model is None else {"model": model}

        async def send(number: int) -> Outcome:
            try:
                await call(images[number % len(images)], **parameters)
            except RetryLater as error:
                return Outcome(Status.REFUSED, error.code)
            except ClientError as error:
                return Outcome(Status.FAILED, error.code)
            return ANSWERED

        yield send


class _Problem(msgspec.Struct):
    """The part of problem+json that is needed here."""

    type: str = ""


def outcome_of(response: Response) -> Outcome:
    """The outcome that a response of this service means; the reason is the error's code, or the status without one."""
    if response.status == 200:
        return ANSWERED
    try:
        code = msgspec.json.decode(response.body, type=_Problem).type.rpartition("/")[2]
    except msgspec.DecodeError:
        code = ""
    status = Status.REFUSED if response.status in REFUSALS else Status.FAILED
    return Outcome(status, code or f"HTTP {response.status}, which is not a reply of this service")
