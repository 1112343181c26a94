"""A worker whose answers the test writes: the real endpoint, and what front-ends sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Self

from model.errors import ConvMLPError
from model.types import QueryParams, RawOutput, Task
from service.wire.messages import Hello, ModelState, Phase, Predict, State, WaitEstimate
from service.wire.worker_endpoint import Envelope, WorkerEndpoint
from service.worker.model_registry import new_model
from tests.fakes import fake_answer, fake_bundle
from tests.service.wire.worker_pool import CLASSIFY, picture
from tests.waiting import PATIENCE_S

NO_WAIT = WaitEstimate(0.0, 0.0)


class ScriptedWorker(WorkerEndpoint):
    """Use as an async context manager. What is not received yet waits."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._envelopes: asyncio.Queue[Envelope] = asyncio.Queue()
        self._receiving = asyncio.create_task(self.run(self._envelopes.put_nowait, lambda: None))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._receiving.cancel()
        await asyncio.wait([self._receiving])
        await super().__aexit__(*error)

    async def receive(self) -> Envelope:
        """The next message of a front-end."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._envelopes.get()

    async def introduce(
        self,
        instance: str = "one",
        retry_after_s: float = 0.0,
        models: Sequence[str] = (CLASSIFY,),
        start_s: float = 0.0,
    ) -> None:
        """Answer the next message, a Hello, as a worker that is ready."""
        sender, message, _ = await self.receive()
        assert isinstance(message, Hello)
        loaded = [new_model(fake_bundle(Task.CLASSIFY, name)) for name in models]
        states = tuple(ModelState(model.name, model.version, True, "cpu", "fp32") for model in loaded)
        configs = {model.version: model.config.model_dump_json() for model in loaded}
        state = State(instance, Phase.READY, "ready", retry_after_s, states, configs, start_s=start_s)
        self.send_state(sender, state)

    async def next_job(self) -> Job:
        """The next Predict; other messages are skipped."""
        while True:
            sender, message, _ = await self.receive()
            if isinstance(message, Predict):
                return Job(self, sender, message.job)


class Job:
    """A Predict that a scripted worker has received."""

    def __init__(self, worker: ScriptedWorker, sender: bytes, number: int) -> None:
        self._worker = worker
        self._sender = sender
        self.number = number

    def answer(
        self,
        level: int = 1,
        estimate: WaitEstimate = NO_WAIT,
        *,
        output: RawOutput | None = None,
        queue_s: float = 0.0,
        infer_s: float = 0.0,
        batch_images: int = 1,
    ) -> None:
        """Answer with `output`, or else as the fake classifier does for a picture of one grey level."""
        if output is None:
            pixels = picture(level)
            output = fake_answer(Task.CLASSIFY, pixels.pixels, pixels.geometry, QueryParams())
        self._worker.answer(self._sender, self.number, output, queue_s, infer_s, batch_images, estimate)
        # Answers of the test that follow at once leave with this one, as those of a batch do.
        asyncio.get_running_loop().call_soon(self._worker.flush)

    def fail(self, error: ConvMLPError) -> None:
        self._worker.fail(self._sender, self.number, error)
