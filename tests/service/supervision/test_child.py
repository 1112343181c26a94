"""A child process that cannot start or ends at once: it is started again until it is stopped."""

from __future__ import annotations

import asyncio
import os

from service.supervision.child import Child, ChildSpec, Loss
from tests.waiting import until


async def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    """A lack of descriptors or processes costs a start, not the supervision."""
    losses: list[Loss] = []
    attempts = 0

    def inherited() -> list[int]:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise OSError("no descriptors left")
        return []

    child = Child(ChildSpec("part-0", "no-such-command", 10.0), dict(os.environ), inherited, losses.append)
    running = asyncio.create_task(child.run())
    await until(lambda: len(losses) == 3)  # the third attempt started a process, which ended
    assert set(losses) == {Loss.EXITED}
    await child.stop(running, 10.0)
    assert running.done()
