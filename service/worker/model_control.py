"""Where front-ends ask for models to be loaded and unloaded: one at a time, each within its deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from model.errors import ConvMLPError
from service.errors import DeadlineExceeded, Forbidden, Internal, Overloaded, Unavailable
from service.wire.messages import MODEL_CONTROL_OFF, ControlRequest, ListStore, Load, Unload
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.model_loader import ModelLoader

MAX_REQUESTS = 16
"""Requests in hand: the one that is carried out, those that wait for it, and lists that are made."""

log = structlog.get_logger(__name__)


class ModelControl:
    """Carries requests out and answers them. `spawn` makes the task of each."""

    def __init__(
        self,
        door: WorkerEndpoint,
        keeper: ModelLoader,
        *,
        allowed: bool,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._door = door
        self._keeper = keeper
        self._allowed = allowed
        self._spawn = spawn
        self._turn = asyncio.Lock()
        self._tasks: dict[tuple[bytes, int], asyncio.Task[None]] = {}
        self._begun: set[tuple[bytes, int]] = set()
        self._closing = False

    def take_in(self, sender: bytes, request: ControlRequest) -> None:
        """Begin a request, or let it wait for its turn.

        Raises:
            Forbidden: the settings do not allow it.
            Overloaded: too many are in hand.
        """
        if not self._allowed and not isinstance(request, ListStore):
            raise Forbidden(MODEL_CONTROL_OFF)
        if len(self._tasks) >= MAX_REQUESTS:
            raise Overloaded(f"{len(self._tasks)} requests about models are in hand already; try again later")
        key = (sender, request.job)
        self._tasks[key] = task = self._spawn(self._answer(sender, request))
        task.add_done_callback(lambda _: self._tasks.pop(key))

    def withdraw(self, key: tuple[bytes, int]) -> None:
        """Give a request up, unless it is too late for that."""
        if key in self._tasks and key not in self._begun:
            self._tasks[key].cancel()

    async def close(self) -> None:
        """Give up what can be given up, and wait for the rest."""
        self._closing = True
        for key in self._tasks:
            self.withdraw(key)
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    def abandon(self) -> None:
        """Give up everything."""
        for task in self._tasks.values():
            task.cancel()

    async def _answer(self, sender: bytes, request: ControlRequest) -> None:
        key = (sender, request.job)
        try:
            async with asyncio.timeout(request.budget_s) as limit:

                def begun() -> None:
                    # Half an exchange of models helps nobody: from here on it is done to its end.
                    limit.reschedule(None)
                    self._begun.add(key)

                await self._carry_out(request, begun)
                store = await self._keeper.store()
        except TimeoutError:
            error: ConvMLPError = DeadlineExceeded("the request's deadline passed before it was done")
        except ConvMLPError as refused:
            error = refused
        except asyncio.CancelledError:
            if self._closing:
                self._door.fail(sender, request.job, Unavailable("the worker is shutting down"))
            raise
        except Exception:  # the boundary to disk and network: whatever it met, the caller must be answered
            log.exception("request about models failed", request=request)
            error = Internal("the worker could not do this; its log says why")
        else:
            self._door.tell_store(sender, request.job, store)
            return
        finally:
            self._begun.discard(key)
        self._door.fail(sender, request.job, error)

    async def _carry_out(self, request: ControlRequest, begun: Callable[[], None]) -> None:
        match request:
            case ListStore():
                return
            case Load(model=name):
                async with self._turn:
                    await self._keeper.load(name, begun)
            case Unload(model=name):
                async with self._turn:
                    await self._keeper.unload(name, begun)
