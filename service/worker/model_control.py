"""Changes of models that front-ends request: one after the other, each within its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from model.errors import ConvMLPError
from service.errors import MODEL_CONTROL_OFF, DeadlineExceeded, Forbidden, Internal, Overloaded, Unavailable
from service.wire.messages import ControlRequest, ListStore, Load, SetSplit, Unload
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.model_loader import ModelLoader
from service.worker.types import JobKey

MAX_REQUESTS = 16
"""Requests that run or wait, listings included."""

log = structlog.get_logger(__name__)


class ModelControl:
    """Runs requests and answers them. `spawn` makes the task of each."""

    def __init__(
        self,
        endpoint: WorkerEndpoint,
        loader: ModelLoader,
        *,
        allowed: bool,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._endpoint = endpoint
        self._loader = loader
        self._allowed = allowed
        self._spawn = spawn
        self._lock = asyncio.Lock()
        self._tasks: dict[JobKey, asyncio.Task[None]] = {}
        self._committed: set[JobKey] = set()
        self._closing = False

    def start(self, sender: bytes, request: ControlRequest) -> None:
        """Start a request, or queue it behind the one that runs.

        Raises:
            Forbidden: the settings do not allow it.
            Overloaded: too many run or wait.
        """
        if not self._allowed and not isinstance(request, ListStore):
            raise Forbidden(MODEL_CONTROL_OFF)
        if len(self._tasks) >= MAX_REQUESTS:
            raise Overloaded(f"{len(self._tasks)} requests about models are pending; try again later")
        key = (sender, request.job)
        self._tasks[key] = task = self._spawn(self._answer(sender, request))
        task.add_done_callback(lambda _: self._tasks.pop(key))

    def cancel(self, key: JobKey) -> None:
        """Cancel a request, unless it has changed something already."""
        if key in self._tasks and key not in self._committed:
            self._tasks[key].cancel()

    async def close(self) -> None:
        """Cancel the requests that can be cancelled, and wait for the others."""
        self._closing = True
        for key in self._tasks:
            self.cancel(key)
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def abandon(self) -> None:
        """Cancel everything."""
        for task in self._tasks.values():
            task.cancel()

    async def _answer(self, sender: bytes, request: ControlRequest) -> None:
        key = (sender, request.job)
        try:
            async with asyncio.timeout(request.budget_s) as limit:

                def commit() -> None:
                    # Half a change of models helps nobody: from here on it is completed.
                    limit.reschedule(None)
                    self._committed.add(key)

                await self._run(request, commit)
                store = await self._loader.store()
        except TimeoutError:
            error: ConvMLPError = DeadlineExceeded("timed out before the models were changed")
        except ConvMLPError as refused:
            error = refused
        except asyncio.CancelledError:
            if self._closing:
                self._endpoint.fail(sender, request.job, Unavailable("the worker is shutting down"))
            raise
        except Exception:  # the boundary to disk and network: the caller must be answered in any case
            log.exception("model request failed", request=request)
            error = Internal("the worker could not change its models; see its log")
        else:
            self._endpoint.send_store(sender, request.job, store)
            return
        finally:
            self._committed.discard(key)
        self._endpoint.fail(sender, request.job, error)

    async def _run(self, request: ControlRequest, commit: Callable[[], None]) -> None:
        match request:
            case ListStore():
                return
            case Load(model=name):
                async with self._lock:
                    await self._loader.load(name, commit)
            case Unload(model=name):
                async with self._lock:
                    await self._loader.unload(name, commit)
            case SetSplit(model=name, split=split):
                async with self._lock:
                    await self._loader.set_split(name, split, commit)
