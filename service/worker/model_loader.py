"""Brings models into memory, proves them there, and lets them go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import structlog

from model.bundle import bundle_names, find_bundle, read_bundle
from model.errors import BundleInvalid
from service.errors import Internal, ModelNotFound, Overloaded
from service.observability.metrics import WorkerMetrics
from service.settings import Settings
from service.types import StoredModel
from service.worker.dispatcher import Dispatcher
from service.worker.model_registry import LoadedModel, ModelRegistry, StateFile, new_model
from service.worker.runner import OutOfDeviceMemory, Runner
from service.worker.self_check import SelfCheck
from service.worker.tuning import Tuner

PROOF_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Between tries to ask a new model about the reference picture while the worker is too busy for it."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = structlog.get_logger(__name__)


class ModelLoader:
    """Owns what is on the shelf and in the runner's slots. `load` and `unload` are for one caller at a time.

    Weights are read in a thread of their own; only putting them on the device takes the device's time.
    """

    def __init__(
        self,
        shelf: ModelRegistry,
        runner: Runner,
        device_thread: Executor,
        dispatcher: Dispatcher,
        tuner: Tuner,
        settings: Settings,
        metrics: WorkerMetrics,
        announce: Callable[[], None],
    ) -> None:
        self._shelf = shelf
        self._runner = runner
        self._device_thread = device_thread
        self._dispatcher = dispatcher
        self._check = SelfCheck(dispatcher)
        self._tuner = tuner
        self._settings = settings
        self._metrics = metrics
        self._announce = announce
        self._file = StateFile(settings.served_models_file, settings.models)
        self._reading_thread = ThreadPoolExecutor(1, thread_name_prefix="read-models")
        self._in_hand: dict[str, str] = {}
        self._leaving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load what is on the shelf.

        Raises:
            BundleInvalid: the weights of a configured model do not fit.
            OutOfDeviceMemory: the device has no room for a configured model.
        """
        for model in self._shelf.served:
            try:
                await self._put_on_device(model)
            except (BundleInvalid, OutOfDeviceMemory) as error:
                if model.name in self._settings.models:
                    raise
                # It was loaded by a caller once: the others must not be lost for it.
                log.error("a model that was served cannot be loaded again", model=model.name, error=str(error))
                self._shelf.take(model.name)
                self._metrics.remove_model(model.name)

    async def check(self) -> bool:
        """Ask each served model about the reference picture; whether all of them are fit to serve."""
        for model in self._shelf.served:
            if self._shelf.get(model.name) is not model:
                continue  # it left meanwhile
            before = model.unready_reason
            try:
                model.unready_reason = await self._check.unready_reason(model)
            except Overloaded as busy:
                log.warning("self-check put off", model=model.name, reason=busy.detail)
                continue
            if model.unready_reason is not None:
                log.error("self-check failed", model=model.name, unready_reason=model.unready_reason)
            if self._shelf.get(model.name) is model:
                self._metrics.model_ready(model.name, ready=model.unready_reason is None)
                if model.unready_reason != before:
                    self._announce()
                if model.unready_reason is None:
                    await self._tune(model)
        return all(model.unready_reason is None for model in self._shelf.served)

    async def store(self) -> tuple[StoredModel, ...]:
        """Everything on disk, and everything that is served, by name."""
        names = await asyncio.to_thread(bundle_names, self._settings.models_dir)
        return tuple(self._stored(name) for name in sorted({*names, *(model.name for model in self._shelf.served)}))

    async def load(self, name: str, begun: Callable[[], None]) -> None:
        """Serve a model of the store; one that is served already only where that changes anything.

        Until `begun` is called it can be cancelled, which leaves everything as it was.

        Raises:
            ModelNotFound: there is none of that name in the store.
            Internal: its bundle is broken, or it does not give its committed answer.
            Overloaded: there is no room for it, or the worker is too busy to prove it.
        """
        started_s = time.monotonic()
        with self._said(name, "it is being loaded"):
            try:
                model = await self._run_in(self._reading_thread, self._read, name)
                served = self._shelf.get(name)
                if served is not None and (served.version, served.unready_reason) == (model.version, None):
                    return
                await self._enter(model)
            except BundleInvalid as error:  # its words name folders, which are nothing for a caller
                log.error("model cannot be loaded", model=name, error=str(error))
                raise Internal(
                    f"model {name!r} cannot be loaded: its bundle is broken; the worker's log says how"
                ) from None
            except OutOfDeviceMemory as error:
                log.error("no room for a model", model=name, error=str(error))
                raise Overloaded(f"there is no room in memory for model {name!r}; unload another one first") from None
            begun()
            replaced = self._shelf.put(model)
            self._metrics.model_ready(name, ready=True)
            await self._changed()
            log.info("model loaded", model=name, seconds=round(time.monotonic() - started_s, 3))
            if replaced is not None:
                # What front-ends made for it before they heard of the change is still answered.
                await asyncio.sleep(2 * self._settings.heartbeat_interval_ms / 1000)
                self._shelf.drop(replaced)
                await self._leave(replaced)

    async def unload(self, name: str, begun: Callable[[], None]) -> None:
        """Serve a model no more, answer what is in hand for it, and give its memory back.

        Raises:
            ModelNotFound: it is not served.
        """
        model = self._shelf.take(name)
        begun()
        with self._said(name, "it is being unloaded"):
            await self._changed()
            await self._leave(model)
        self._metrics.remove_model(name)
        log.info("model unloaded", model=name)

    def close(self) -> None:
        for leaving in self._leaving:
            leaving.cancel()
        self._reading_thread.shutdown(wait=False)

    def _read(self, name: str) -> LoadedModel:
        # Names come from callers: only one that a listing has is made into a path.
        if name not in bundle_names(self._settings.models_dir):
            raise ModelNotFound(f"there is no model {name!r} in the store")
        return new_model(read_bundle(find_bundle(name, self._settings.models_dir)))

    async def _enter(self, model: LoadedModel) -> None:
        """Load a model and have it prove itself; where it fails nothing stays of it."""
        new = self._shelf.get(model.name) is None
        if new:
            self._metrics.add_model(model.name, model.config.task.value)
        try:
            await self._put_on_device(model)
            await self._prove(model)
            await self._tune(model)
        except BaseException:
            # Comes after whatever the device still does for it; not waited for, since the device may hang.
            leaving = asyncio.create_task(self._leave(model))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            if new:
                self._metrics.remove_model(model.name)
            raise

    async def _put_on_device(self, model: LoadedModel) -> None:
        put = await self._run_in(self._reading_thread, self._runner.prepare, model.slot, model.bundle)
        await self._run_in(self._device_thread, put)
        model.precision = self._runner.precision(model.slot)

    async def _prove(self, model: LoadedModel) -> None:
        for pause_s in (*PROOF_PAUSES_S, None):
            try:
                model.unready_reason = await self._check.unready_reason(model)
            except Overloaded:
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
            else:
                break
        if model.unready_reason is not None:
            log.error("model did not prove itself", model=model.name, unready_reason=model.unready_reason)
            raise Internal(
                f"model {model.name!r} is not served: it does not give its committed answer on the reference "
                f"picture: {model.unready_reason}"
            )

    async def _tune(self, model: LoadedModel) -> None:
        """Measure the best batch of a model that has proven itself, once."""
        if not model.best_batch:
            model.best_batch = await self._tuner.tune(model)
            self._metrics.best_batch(model.name, model.best_batch)

    async def _leave(self, model: LoadedModel) -> None:
        """Empty the slot of a model that is found no more, once what it has in hand is answered."""
        model.gone = True
        await self._dispatcher.finished(model.slot)
        await self._run_in(self._device_thread, self._runner.remove, model.slot)
        self._tuner.forget(model.slot)

    async def _changed(self) -> None:
        try:
            await asyncio.to_thread(self._file.write, [model.name for model in self._shelf.served])
        except OSError as error:
            log.error("what is served cannot be written down, so that a restart will not know it", error=str(error))
        self._announce()

    def _stored(self, name: str) -> StoredModel:
        model = self._shelf.get(name)
        if model is None:
            return StoredModel(name, served=False, ready=False, reason=self._in_hand.get(name, "it is not loaded"))
        return StoredModel(name, served=True, ready=model.unready_reason is None, reason=model.unready_reason or "")

    @contextmanager
    def _said(self, name: str, words: str) -> Iterator[None]:
        """What is told of a model that is not served, for as long as something is done to it."""
        self._in_hand[name] = words
        try:
            yield
        finally:
            del self._in_hand[name]

    async def _run_in(self, thread: Executor, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)
