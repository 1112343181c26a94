"""A replica that runs one worker: it owns a device, and front-ends of all nodes send it jobs over the wire.

Ray sees the replica only: no request passes through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import uvloop

from service.cluster.controller import ADDRESS
from service.cluster.replica import node_address, start_process, wire_keys
from service.observability.tracing import Tracing, open_tracing
from service.process import BEAT_INTERVAL_S, EXIT_WEDGED, host_port
from service.settings import Settings
from service.wire.curve import CurveKeys, worker_wire
from service.wire.messages import Phase
from service.wire.worker_endpoint import WorkerEndpoint
from service.worker.runner import DeviceLost
from service.worker.worker import Worker, WorkerWedged

START_S = 900.0
"""How long a worker may take to open its device and to load and verify its models."""
LEAVE_S = 3.0
"""How long a worker that is to stop serves on, while the front-ends learn of those that take its place."""
OUTSTANDING = "outstanding_images"
"""Name of the autoscaling metric: images that wait or run."""

ServeWorker = Callable[[WorkerEndpoint, Settings, asyncio.Event, Tracing, Callable[[Worker], None]], Awaitable[None]]
"""`service.worker.main.serve_worker`, or another one with another device."""

log = structlog.get_logger(__name__)


class Unhealthy(Exception):
    """The worker needs a new process; the message has the reason."""


class WorkerThread:
    """A worker on an event loop of its own, in a thread: neither it nor Ray's own loop slows the other down."""

    def __init__(self, host: str, settings: Settings, keys: CurveKeys | None, serve: ServeWorker) -> None:
        self._settings = settings
        self._serve = serve
        self._wire = worker_wire(settings.with_changes(worker_address=f"tcp://{host_port(host, 0)}"), keys)
        self._address = f"tcp://{host_port(host, 0)}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._worker: Worker | None = None
        self._beat_s = time.monotonic()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """The real one, once the worker is ready."""
        return self._address

    async def ready(self, timeout_s: float) -> None:
        """Wait until the worker serves all its models.

        Raises:
            Unhealthy: it ended, took too long, or a model failed its self-check.
        """
        end_s = time.monotonic() + timeout_s
        health = None
        while health is None or health.phase is Phase.STARTING:
            if self._error is not None or not self._thread.is_alive():
                raise Unhealthy(f"the worker could not start: {_text_of(self._error)}") from self._error
            if time.monotonic() > end_s:
                raise Unhealthy(f"the worker was not ready within {timeout_s:g} s")
            await asyncio.sleep(0.1)
            health = self._worker.health() if self._worker is not None else None
        if health.unready:
            raise Unhealthy(f"models that fail their self-check: {', '.join(health.unready)}")

    def check(self) -> None:
        """Raises Unhealthy: the worker cannot go on without a new process."""
        if not self._thread.is_alive() or self._worker is None:
            raise Unhealthy(f"the worker ended: {_text_of(self._error)}")
        silent_s = time.monotonic() - self._beat_s
        if silent_s > self._settings.worker_timeout_ms / 1000:
            raise Unhealthy(f"the worker's event loop has not run for {silent_s:.0f} s")
        device_s = self._worker.health().silent_s
        if device_s > self._settings.batch_timeout_ms / 1000:
            raise Unhealthy(f"the device has not answered for {device_s:.0f} s")

    def outstanding_images(self) -> int:
        return self._worker.health().outstanding_images if self._worker is not None else 0

    async def stop(self) -> None:
        """Drain, and wait for the end."""
        if self._loop is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        except* (WorkerWedged, DeviceLost) as errors:
            log.critical("the device does not answer", error=_text_of(errors))
            # The device thread hangs in foreign code, and a normal exit would wait for it.
            os._exit(EXIT_WEDGED)
        except* BaseException as errors:
            log.error("the worker ended", error=_text_of(errors))
            self._error = errors

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        beating = asyncio.create_task(self._beat(), name="beat")
        try:
            with open_tracing(self._settings, "worker", follows=True) as tracing:
                async with WorkerEndpoint(self._address, self._wire) as endpoint:
                    self._address = endpoint.address
                    await self._serve(endpoint, self._settings, self._stop, tracing, self._made)
        finally:
            beating.cancel()

    def _made(self, worker: Worker) -> None:
        self._worker = worker

    async def _beat(self) -> None:
        while True:
            self._beat_s = time.monotonic()
            await asyncio.sleep(BEAT_INTERVAL_S)


class WorkerPart:
    """The replica's class: Ray calls its methods by their names. Without `serve` it is `serve_worker`."""

    async def __init__(self, settings: Settings, group: str, serve: ServeWorker | None = None) -> None:  # type: ignore[misc]  # Ray awaits it
        start_process(settings, f"worker-{group}")
        if serve is None:
            from service.worker.main import serve_worker  # with torch, which the deploying machine may lack

            serve = serve_worker
        host = node_address()
        self._worker = WorkerThread(host, settings.with_changes(host=host), wire_keys(settings), serve)
        await self._worker.ready(START_S)
        log.info("the worker takes jobs", address=self._worker.address)

    def record_replica_metadata(self) -> dict[str, Any]:
        """What the controller passes on to the front-ends."""
        return {ADDRESS: self._worker.address}

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {OUTSTANDING: float(self._worker.outstanding_images())}

    def check_health(self) -> None:
        """Raises Unhealthy: Ray replaces the replica then."""
        self._worker.check()

    async def __del__(self) -> None:
        if hasattr(self, "_worker"):  # else it never took jobs
            await asyncio.sleep(LEAVE_S)
            await self._worker.stop()


def _text_of(error: BaseException | None) -> str:
    """The first of an error's causes, in words. None: it stopped as it was asked to."""
    if error is None:
        return "it was stopped"
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) or type(error).__name__
