"""Questions down a real line, at whose other end is a bare door."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from service.errors import DeadlineExceeded, ModelNotFound, Unavailable
from service.wire.messages import Cancel, ListStore
from service.wire.worker_client import PendingRequests
from service.wire.worker_endpoint import WorkerEndpoint
from service.wire.zmq_socket import WorkerConnection
from tests.service.wire.peers import soon


async def test_nothing_is_kept_of_a_question_that_ended(tmp_path: Path) -> None:
    """Answered, failed, late, left alone, or never sent: nobody waits any more, and what comes later is ignored."""
    address = f"ipc://{tmp_path}/w"
    async with WorkerConnection(address) as line:
        numbers = itertools.count(1)
        words: PendingRequests[str] = PendingRequests(line, numbers)
        others: PendingRequests[str] = PendingRequests(line, numbers)
        with pytest.raises(Unavailable):
            await words.ask(soon(), ListStore)
        with pytest.raises(DeadlineExceeded):
            await words.ask(time.monotonic() - 1, ListStore)
        async with WorkerEndpoint(address) as door:
            assert await line.connected()

            async def asked(of: PendingRequests[str], seconds: float = 20.0) -> tuple[asyncio.Task[str], int]:
                asking = asyncio.create_task(of.ask(time.monotonic() + seconds, ListStore))
                message = (await door.receive()).message
                assert isinstance(message, ListStore)
                return asking, message.job

            answered, first = await asked(words)
            failed, second = await asked(words)
            elsewhere, third = await asked(others)
            assert len({first, second, third}) == 3
            assert (len(words), len(others)) == (2, 1)
            for one in (words, others):
                one.settle(first, "an answer")
                one.settle(second, ModelNotFound("none"))
            assert await answered == "an answer"
            with pytest.raises(ModelNotFound):
                await failed
            late, _ = await asked(words, seconds=0.05)
            with pytest.raises(DeadlineExceeded):
                await late
            assert isinstance((await door.receive()).message, Cancel)
            left, job = await asked(words)
            left.cancel()
            assert (await door.receive()).message == Cancel(job)
            assert len(words) == 0
            words.settle(job, "too late")
            others.fail_all(lambda: Unavailable("gone"))
            with pytest.raises(Unavailable, match="gone"):
                await elsewhere
            assert len(others) == 0
