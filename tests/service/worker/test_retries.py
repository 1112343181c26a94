"""Batches that fail: out of memory, or by one input."""

from __future__ import annotations

import asyncio

from service.errors import Internal, Overloaded
from service.worker.runner import OutOfDeviceMemory
from tests.service.worker.dispatcher_bench import HeldBatches, dispatcher_bench


async def test_out_of_memory_halves_the_batch_from_then_on() -> None:
    """No job is lost when a batch does not fit; later batches of that shape are small enough from the start."""
    async with dispatcher_bench() as it:
        it.runner.memory_images = 2
        await it.hold()
        for number in range(1, 9):
            it.submit(number, level=number)
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 9)
        assert [it.label(number) for number in range(9)] == list(range(9))
        it.runner.batches.clear()
        await it.hold(10)
        for number in range(11, 15):
            it.submit(number)
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 14)
        assert [images for _, images in it.runner.batches] == [1, 2, 2]


async def test_an_image_that_never_fits_is_refused_alone() -> None:
    """A single image that does not fit gets its own error, and the worker goes on."""
    async with dispatcher_bench() as it:
        it.runner.memory_images = 0
        it.submit(0)
        await it.until(lambda: 0 in it.results)
        assert isinstance(it.error(0), Overloaded)
        it.runner.memory_images = None
        it.submit(1, level=5)
        await it.until(lambda: 1 in it.results)
        assert it.label(1) == 5


async def test_an_image_that_does_not_fit_beside_others_runs_alone() -> None:
    """An image that does not fit while another lane uses memory is tried alone before it is refused."""
    async with dispatcher_bench(lanes=2) as it:
        held = HeldBatches(it)
        wait = it.runner.takes
        assert wait is not None

        def takes(model: str, images: int, lanes: int) -> None:
            wait(model, images, lanes)
            if lanes < 2:
                raise OutOfDeviceMemory("somebody else has it")

        it.runner.takes = takes
        for number in range(3):
            it.submit(number, level=5)
        await it.until(lambda: len(held) == 2)
        while len(it.results) < 3:
            held.release_all()
            await asyncio.sleep(0.001)
        assert [it.label(number) for number in range(3)] == [5] * 3
        assert it.runner.shares.count(2) == 3

        def never(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
            raise OutOfDeviceMemory("too large")

        it.runner.takes = never
        it.submit(4)
        it.submit(5)
        await it.until(lambda: len(it.results) == 5)
        assert isinstance(it.error(4), Overloaded)
        assert isinstance(it.error(5), Overloaded)


async def test_a_bad_input_fails_alone() -> None:
    """When the network fails on a batch, each job runs alone: one gets Internal, the others their answers."""
    async with dispatcher_bench() as it:
        it.runner.poison = 13
        await it.hold()
        for number, level in ((1, 11), (2, 13), (3, 15)):
            it.submit(number, level=level)
        it.runner.unblocked.set()
        await it.until(lambda: len(it.results) == 4)
        assert isinstance(it.error(2), Internal)
        assert "poisoned" not in it.error(2).detail
        assert (it.label(1), it.label(3)) == (11, 15)


async def test_a_failed_batch_does_not_disturb_another_lane() -> None:
    """While a batch fails, the batch on the other lane is answered; so are the failed batch's good jobs."""
    async with dispatcher_bench(lanes=2, batch=2) as it:
        it.runner.poison = 13
        held = HeldBatches(it)
        for number, level in enumerate((13, 1, 2, 3)):
            it.submit(number, level=level)
        await it.until(lambda: len(held) == 2)
        held.release(0)
        await it.until(lambda: len(held) == 3)  # the first of the two runs again, alone
        held.release(1)
        await it.until(lambda: {2, 3} <= it.results.keys())
        assert (it.label(2), it.label(3)) == (2, 3)
        await it.until(lambda: len(held) == 4)
        held.release_all()
        await it.until(lambda: len(it.results) == 4)
        assert isinstance(it.error(0), Internal)
        assert it.label(1) == 1
