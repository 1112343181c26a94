"""Loads models onto the device, checks them there, and unloads them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar, TypeVarTuple

import structlog

from model.bundle import EMBEDDED_DIR, bundle_names, find_bundle, read_bundle
from model.errors import BundleInvalid
from service.errors import ModelInvalid, ModelNotFound, Overloaded
from service.observability.metrics import WorkerMetrics
from service.process import trim_memory
from service.settings import Settings
from service.traffic_split import TrafficSplit, split_text
from service.types import StoredModel
from service.worker.disk import DiskReads, write_to_disk
from service.worker.dispatcher import Dispatcher
from service.worker.model_registry import LoadedModel, ModelRegistry, new_model
from service.worker.runner import OutOfDeviceMemory, Runner
from service.worker.self_check import SelfCheck
from service.worker.served_models_file import ServedModels, ServedModelsFile
from service.worker.tuning import Tuner

CHECK_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Pauses between tries to check a new model while the worker is too busy for it."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

log = structlog.get_logger(__name__)


class ModelLoader:
    """Owns the registry and the runner's slots. Only one `load` or `unload` may run at a time.

    Weights are read in threads of their own; only their copy to the device takes device time.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        runner: Runner,
        device_thread: Executor,
        dispatcher: Dispatcher,
        tuner: Tuner,
        settings: Settings,
        metrics: WorkerMetrics,
        announce: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._runner = runner
        self._device_thread = device_thread
        self._dispatcher = dispatcher
        self._self_check = SelfCheck(dispatcher)
        self._tuner = tuner
        self._settings = settings
        self._metrics = metrics
        self._announce = announce
        self._file = ServedModelsFile(settings.served_models_file, ServedModels.configured(settings))
        self._reads = DiskReads()
        self._changing: dict[str, str] = {}
        """By name: what is being done to a model that is not served."""
        self._removals: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Load the models of the registry, and take over the splits that were set last.

        Raises:
            BundleInvalid: the weights of a configured model do not fit.
            OutOfDeviceMemory: the device has no room for a configured model.
        """
        for model in self._registry.served:
            try:
                await self._put_on_device(model)
            except (BundleInvalid, OutOfDeviceMemory) as error:
                if model.name in self._settings.models:
                    raise
                # A caller loaded it once: the other models are served without it.
                log.error("cannot load a model that was served last", model=model.name, error=str(error))
                self._registry.drop(self._registry.remove(model.name))
                self._metrics.remove_model(model.name)
        self._registry.set_splits((await asyncio.to_thread(self._file.read)).splits)

    async def check(self) -> bool:
        """Check each served model on its reference picture. True: all of them are ready."""
        for model in self._registry.served:
            if self._registry.get(model.name) is not model:
                continue  # it was unloaded meanwhile
            before = model.unready_reason
            try:
                model.unready_reason = await self._self_check.unready_reason(model)
            except Overloaded as busy:
                log.warning("self-check postponed", model=model.name, reason=busy.detail)
                continue
            if model.unready_reason is not None:
                log.error("self-check failed", model=model.name, unready_reason=model.unready_reason)
            if self._registry.get(model.name) is model:
                self._metrics.model_ready(model.name, ready=model.unready_reason is None)
                if model.unready_reason != before:
                    self._announce()
                if model.unready_reason is None and not model.best_batch:
                    await self._tune(model)
        return all(model.unready_reason is None for model in self._registry.served)

    async def refine(self, is_idle: Callable[[], bool]) -> None:
        """Measure once more what had too little time before: a busy machine, or a slow model.

        This ends once the worker is not idle any more. `is_idle` is also asked in a thread. A precision holds from the
        next start.
        """
        for model in self._registry.served:
            if model.unready_reason is None and not model.retired and model.tunings_left and is_idle():
                model.tunings_left -= 1
                await self._tune(model, is_idle)
        for model in self._registry.served:
            if model.unready_reason is None and not model.retired and model.measurements_left and is_idle():
                await self._measure_precision(model, is_idle)

    async def _measure_precision(self, model: LoadedModel, is_idle: Callable[[], bool]) -> None:
        thread = ThreadPoolExecutor(1, thread_name_prefix="measure")  # one that ends, as for loading
        call = partial(self._runner.measure_again, model.slot, model.bundle, lambda: is_idle() and not model.retired)
        try:
            trustworthy = await asyncio.get_running_loop().run_in_executor(thread, call)
        except (BundleInvalid, OutOfDeviceMemory) as error:
            log.warning("cannot measure a precision again", model=model.name, error=str(error))
            trustworthy = False
        finally:
            thread.shutdown(wait=False)
        if trustworthy is not None:
            model.measurements_left = 0 if trustworthy else model.measurements_left - 1

    async def store(self) -> tuple[StoredModel, ...]:
        """All models on disk and all served models, sorted by name."""
        names = await asyncio.to_thread(bundle_names, self._settings.models_dir)
        return tuple(self._stored(name) for name in sorted({*names, *(model.name for model in self._registry.served)}))

    async def load(self, name: str, commit: Callable[[], None]) -> None:
        """Serve a model of the store. A served model is loaded again only if it changed on disk or is not ready.

        Until this calls `commit` it can be cancelled, which changes nothing.

        Raises:
            ModelNotFound: there is none of that name in the store.
            ModelInvalid: its bundle is broken, or it does not give its committed answer.
            Overloaded: the device has no room for it, or the worker is too busy to check it.
        """
        started_s = time.monotonic()
        with self._store_reason(name, "it is being loaded"):
            try:
                model = await self._reads.run(self._read, name)
                served = self._registry.get(name)
                if served is not None and (served.version, served.unready_reason) == (model.version, None):
                    if served.config != model.config:  # it was measured since
                        served.bundle = model.bundle
                        await self._save_and_announce()
                    return
                self._registry.check_task(model)
                await self._load_and_check(model)
            except BundleInvalid as error:
                log.error("cannot load a model", model=name, error=str(error))
                raise ModelInvalid(f"model {name!r} cannot be loaded: {self._without_paths(error)}") from None
            except OutOfDeviceMemory as error:
                log.error("no memory for a model", model=name, error=str(error))
                raise Overloaded(f"no memory is left for model {name!r}; unload another model first") from None
            commit()
            replaced = self._registry.put(model)
            self._metrics.model_ready(name, ready=True)
            await self._save_and_announce()
            log.info("model loaded", model=name, seconds=round(time.monotonic() - started_s, 3))
            if replaced is not None:
                await self._finish(replaced)

    async def unload(self, name: str, commit: Callable[[], None]) -> None:
        """Stop serving a model, answer its pending jobs, and free its memory. Its share of a split goes to the others.

        Raises:
            ModelNotFound: it is not served.
        """
        model = self._registry.remove(name)
        commit()
        with self._store_reason(name, "it is being unloaded"):
            await self._save_and_announce()
            await self._finish(model)
        self._metrics.remove_model(name)
        log.info("model unloaded", model=name)

    async def set_split(self, name: str, split: TrafficSplit, commit: Callable[[], None]) -> None:
        """Replace the split of a name among its served versions. Raises as `ModelRegistry.set_split`."""
        self._registry.set_split(name, split)
        commit()
        await self._save_and_announce()
        log.info("split changed", model=name, split=split_text(split) or "the default version")

    def close(self) -> None:
        for removal in self._removals:
            removal.cancel()

    def _read(self, name: str) -> LoadedModel:
        # Names come from callers: only one that a listing has is made into a path.
        if name not in bundle_names(self._settings.models_dir):
            raise ModelNotFound(f"there is no model {name!r} in the store")
        return new_model(read_bundle(find_bundle(name, self._settings.models_dir)))

    def _without_paths(self, error: BundleInvalid) -> str:
        """An error's text without the folders of the store, which callers must not see."""
        detail = error.detail
        for root in (self._settings.models_dir, EMBEDDED_DIR):
            if root is not None:
                detail = detail.replace(f"{root}/", "")
        return detail

    async def _load_and_check(self, model: LoadedModel) -> None:
        """Load a model and check it. A model that fails is removed."""
        new = self._registry.get(model.name) is None
        if new:
            self._metrics.add_model(model.name, model.config.task.value)
        try:
            await self._put_on_device(model)
            await self._check_ready(model)
            await self._tune(model)
        except BaseException:
            # It runs after the model's last batch. Nothing waits for it, since the device may hang.
            removal = asyncio.create_task(self._remove(model))
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)
            if new:
                self._metrics.remove_model(model.name)
            raise

    async def _put_on_device(self, model: LoadedModel) -> None:
        put = await self._reads.run(self._runner.load, model.slot, model.bundle)
        await self._on_device(put)
        await asyncio.to_thread(trim_memory)  # reading and measuring took several times what the slot keeps
        model.precision = self._runner.precision(model.slot)
        model.deployment = self._runner.deployment(model.slot)

    async def _check_ready(self, model: LoadedModel) -> None:
        for pause_s in (*CHECK_PAUSES_S, None):
            try:
                model.unready_reason = await self._self_check.unready_reason(model)
            except Overloaded:
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
            else:
                break
        if model.unready_reason is not None:
            log.error("a new model failed its self-check", model=model.name, unready_reason=model.unready_reason)
            raise ModelInvalid(
                f"model {model.name!r} is not served: it does not give its committed answer on the reference "
                f"picture: {model.unready_reason}"
            )

    async def _tune(self, model: LoadedModel, is_idle: Callable[[], bool] | None = None) -> None:
        """Find the best batch size of a model that is ready."""
        best = await (self._tuner.tune_again(model, is_idle) if is_idle else self._tuner.tune(model))
        if best is None:
            return
        model.best_batch = best.images
        if best.whole or is_idle is not None:
            model.tunings_left = 0
        if self._registry.get(model.name) is model or is_idle is None:
            self._metrics.best_batch(model.name, model.best_batch)

    async def _finish(self, model: LoadedModel) -> None:
        """Answer what front-ends prepared for a model before they received that it is not served, and remove it."""
        await asyncio.sleep(2 * self._settings.heartbeat_interval_ms / 1000)
        self._registry.drop(model)
        await self._remove(model)

    async def _remove(self, model: LoadedModel) -> None:
        """Empty the slot of a model that gets no new jobs, once its pending jobs are answered."""
        model.retired = True
        await self._dispatcher.wait_until_done(model.slot)
        await self._on_device(self._runner.remove, model.slot)
        self._tuner.forget(model.slot)

    async def _save_and_announce(self) -> None:
        served = ServedModels(tuple(model.name for model in self._registry.served), dict(self._registry.splits))
        try:
            await write_to_disk(self._file.write, served)
        except OSError as error:
            log.error("cannot save which models are served; a restart serves the configured ones", error=str(error))
        self._announce()

    def _stored(self, name: str) -> StoredModel:
        model = self._registry.get(name)
        if model is None:
            return StoredModel(name, served=False, ready=False, reason=self._changing.get(name, "it is not loaded"))
        return StoredModel(name, served=True, ready=model.unready_reason is None, reason=model.unready_reason or "")

    @contextmanager
    def _store_reason(self, name: str, reason: str) -> Iterator[None]:
        """The reason that `store` gives for a model that is not served, while the context is open."""
        self._changing[name] = reason
        try:
            yield
        finally:
            del self._changing[name]

    async def _on_device(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._device_thread, function, *arguments)
