"""Triton's unmodified clients in a process of their own: their generated code declares the service's protobuf names,
which one process cannot have twice.

The four clients have one interface, so that the same cases run over each. A case is a function of it that runs in the
other process and raises there."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
KINDS = ("http", "http.aio", "grpc", "grpc.aio")


@dataclass(frozen=True)
class Triton:
    """The service's addresses, and the process of the clients. `run` returns a case's result."""

    http: str
    grpc: str
    process: ProcessPoolExecutor

    def run(self, case: Callable[..., Any], kind: str, *arguments: object) -> Any:  # noqa: ANN401
        return self.process.submit(_with_client, case, kind, self.http, self.grpc, arguments).result(timeout=120)


def _with_client(case: Callable[..., Any], kind: str, http: str, grpc: str, arguments: tuple[object, ...]) -> Any:  # noqa: ANN401
    with AnyClient(kind, http if kind.startswith("http") else grpc) as client:
        return case(client, *arguments)


class AnyClient:
    """One client, synchronous or not. `call` runs any of its methods."""

    def __init__(self, kind: str, address: str) -> None:
        self.kind = kind
        self.over_http = kind.startswith("http")
        self.module = importlib.import_module(f"tritonclient.{kind}")
        self._loop = asyncio.new_event_loop() if kind.endswith("aio") else None
        self.triton: Any = self._made(address)

    def _made(self, address: str) -> Any:  # noqa: ANN401
        if self._loop is None:
            return self.module.InferenceServerClient(address, **({"concurrency": 8} if self.over_http else {}))

        async def make() -> Any:  # noqa: ANN401
            return self.module.InferenceServerClient(address)

        return self._loop.run_until_complete(make())

    def __enter__(self) -> AnyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.call("close")
        if self._loop is not None:
            self._loop.close()

    def call(self, method: str, *arguments: object, **options: object) -> Any:  # noqa: ANN401
        answer = getattr(self.triton, method)(*arguments, **options)
        return self.finish(answer) if self._loop is not None and asyncio.iscoroutine(answer) else answer

    def finish(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401
        assert self._loop is not None
        return self._loop.run_until_complete(work)

    def facts(self, method: str, *arguments: object) -> Any:  # noqa: ANN401
        """A method's result, as plain data."""
        return self.call(method, *arguments, **({} if self.over_http else {"as_json": True}))

    def encoded(self, *images: bytes) -> Any:  # noqa: ANN401
        """The input `image` with encoded images."""
        elements = np.empty(len(images), object)
        elements[:] = images
        return self.tensor("image", elements, "BYTES")

    def pixels(self, batch: Array) -> Any:  # noqa: ANN401
        """The input `image` with pixels, uint8 (N, H, W, 3)."""
        return self.tensor("image", batch, "UINT8")

    def tensor(self, name: str, values: Array, datatype: str) -> Any:  # noqa: ANN401
        tensor = self.module.InferInput(name, list(values.shape), datatype)
        tensor.set_data_from_numpy(values)
        return tensor

    def wanted(self, *names: str, **options: object) -> list[Any]:
        return [self.module.InferRequestedOutput(name, **options) for name in names]

    def infer(self, model: str, tensor: Any, **options: object) -> Any:  # noqa: ANN401
        return self.call("infer", model, [tensor], **options)

    def refusal(self, method: str, *arguments: object, **options: object) -> tuple[str, str]:
        """Status and message of the client's own exception."""
        refused: type[Any] = importlib.import_module("tritonclient.utils").InferenceServerException
        try:
            self.call(method, *arguments, **options)
        except refused as error:
            return error.status() or "", error.message()
        raise AssertionError(f"{method} was answered")


def names_of(result: Any) -> list[str]:  # noqa: ANN401
    """The names of a result's outputs, over either transport."""
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    return [output["name"] if isinstance(output, dict) else output.name for output in outputs]


def all_at_once(client: AnyClient, model: str, tensors: Sequence[Any]) -> list[Any]:
    """Concurrent inferences by each client's own means; results in the tensors' order."""
    if client.kind == "http":
        waiting = [client.triton.async_infer(model, [tensor]) for tensor in tensors]
        return [one.get_result() for one in waiting]
    if client.kind == "grpc":
        return _by_callbacks(client, model, tensors)

    async def together() -> list[Any]:
        return await asyncio.gather(*(client.triton.infer(model, [tensor]) for tensor in tensors))

    results: list[Any] = client.finish(together())
    return results


def _by_callbacks(client: AnyClient, model: str, tensors: Sequence[Any]) -> list[Any]:
    results: list[Any] = [None] * len(tensors)
    left = threading.Semaphore(0)

    def take(at: int) -> Callable[..., None]:
        def taken(result: object, error: object) -> None:
            results[at] = error or result
            left.release()

        return taken

    for at, tensor in enumerate(tensors):
        client.triton.async_infer(model, [tensor], take(at))
    for _ in tensors:
        assert left.acquire(timeout=60)
    return results


def streamed(client: AnyClient, asks: Sequence[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Results and errors of one stream, in the order in which they came."""
    if client.kind == "grpc.aio":

        async def converse() -> list[tuple[Any, Any]]:
            async def each() -> Any:  # noqa: ANN401
                for ask in asks:
                    yield ask

            return [reply async for reply in client.triton.stream_infer(each())]

        replies: list[tuple[Any, Any]] = client.finish(converse())
        return replies
    came: list[tuple[Any, Any]] = []
    client.triton.start_stream(lambda result, error: came.append((result, error)))
    for ask in asks:
        client.triton.async_stream_infer(**ask)
    client.triton.stop_stream()
    return came
