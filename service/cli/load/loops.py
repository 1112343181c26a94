"""The two ways to load a service.

Closed loop: so many clients, each of which asks again as soon as it was answered. It finds what a service can do, and
slows down with it. Open loop: requests come by a Poisson process of a given rate whatever the service does, as those of
many independent callers would; the latency counts from when a request was due, so that none is forgiven because this
program was late with it.
"""

from __future__ import annotations

import asyncio
import random
import time
from itertools import count

from service.cli.load.outcome import Ask, Ending, Tally

MAX_IN_HAND = 1024
"""Requests of an open loop that may be unanswered at a time; beyond it they are not sent, and are counted so."""
PAUSE_S = 0.05
"""What a client of the closed loop waits after a refusal or an error: asking again at once would be an attack."""


async def closed_loop(ask: Ask, concurrency: int, seconds: float, warm_up_s: float = 0.0) -> Tally:
    """Ask from `concurrency` clients for `warm_up_s`, then measure for `seconds`, then wait for what is in hand."""
    tally = Tally(seconds)
    numbers = count()
    began_s = time.perf_counter() + warm_up_s
    end_s = began_s + seconds

    async def client() -> None:
        while (asked_s := time.perf_counter()) < end_s:
            outcome = await ask(next(numbers))
            answered_s = time.perf_counter()
            tally.in_window += outcome.ending is Ending.ANSWERED and began_s <= answered_s < end_s
            if asked_s >= began_s:
                tally.count(outcome, answered_s - asked_s)
            if outcome.ending is not Ending.ANSWERED:
                await asyncio.sleep(PAUSE_S)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return tally


async def open_loop(ask: Ask, rate: float, seconds: float, warm_up_s: float = 0.0, seed: int = 0) -> Tally:
    """Ask `rate` times a second on average for `warm_up_s`, then measure for `seconds`, then wait for what is in hand.

    The same seed gives the same arrivals.
    """
    tally = Tally(seconds)
    gaps = random.Random(seed)
    numbers = count()
    began_s = time.perf_counter() + warm_up_s
    end_s = began_s + seconds
    in_hand: set[asyncio.Task[None]] = set()

    async def request(due_s: float) -> None:
        outcome = await ask(next(numbers))
        answered_s = time.perf_counter()
        tally.in_window += outcome.ending is Ending.ANSWERED and began_s <= answered_s < end_s
        if due_s >= began_s:
            tally.count(outcome, answered_s - due_s)

    due_s = began_s - warm_up_s + gaps.expovariate(rate)
    while due_s < end_s:
        # Without this the loop could fall behind and never let an answer in.
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        if len(in_hand) < MAX_IN_HAND:
            task = asyncio.create_task(request(due_s))
            in_hand.add(task)
            task.add_done_callback(in_hand.discard)
        elif due_s >= began_s:
            tally.unsent += 1
        due_s += gaps.expovariate(rate)
    await asyncio.gather(*in_hand)
    return tally
