"""Batches that fail: out of memory, or by one input."""

from __future__ import annotations

import asyncio

import pytest

from model.errors import NotFinite
from service.errors import Internal, Overloaded
from service.worker.runner import OutOfDeviceMemory
from tests.service.worker.dispatcher_bench import DispatcherBench, HeldBatches


async def test_out_of_memory_halves_the_batch_from_then_on(bench: DispatcherBench) -> None:
    """No job is lost when a batch does not fit; later batches of that shape are small enough from the start."""
    bench.runner.memory_images = 2
    await bench.hold()
    for number in range(1, 9):
        bench.submit(number, level=number)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 9)
    assert [bench.label(number) for number in range(9)] == list(range(9))
    bench.runner.batches.clear()
    await bench.hold(10)
    for number in range(11, 15):
        bench.submit(number)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 14)
    assert [images for _, images in bench.runner.batches] == [1, 2, 2]


async def test_an_image_that_never_fits_is_refused_alone(bench: DispatcherBench) -> None:
    """A single image that does not fit gets its own error, and the worker goes on."""
    bench.runner.memory_images = 0
    bench.submit(0)
    await bench.until(lambda: 0 in bench.results)
    assert isinstance(bench.error(0), Overloaded)
    bench.runner.memory_images = None
    bench.submit(1, level=5)
    await bench.until(lambda: 1 in bench.results)
    assert bench.label(1) == 5


@pytest.mark.settings(lanes=2)
async def test_an_image_that_does_not_fit_beside_others_runs_alone(bench: DispatcherBench) -> None:
    """An image that does not fit while another lane uses memory is tried alone before it is refused."""
    held = HeldBatches(bench)
    wait = bench.runner.takes
    assert wait is not None

    def takes(model: str, images: int, lanes: int) -> None:
        wait(model, images, lanes)
        if lanes < 2:
            raise OutOfDeviceMemory("somebody else has it")

    bench.runner.takes = takes
    for number in range(3):
        bench.submit(number, level=5)
    await bench.until(lambda: len(held) == 2)
    while len(bench.results) < 3:
        held.release_all()
        await asyncio.sleep(0.001)
    assert [bench.label(number) for number in range(3)] == [5] * 3
    assert bench.runner.shares.count(2) == 3

    def never(model: str, images: int, lanes: int) -> None:  # noqa: ARG001
        raise OutOfDeviceMemory("too large")

    bench.runner.takes = never
    bench.submit(4)
    bench.submit(5)
    await bench.until(lambda: len(bench.results) == 5)
    assert isinstance(bench.error(4), Overloaded)
    assert isinstance(bench.error(5), Overloaded)


async def test_a_bad_input_fails_alone(bench: DispatcherBench) -> None:
    """When the network fails on a batch, each job runs alone: one gets Internal, the others their answers."""
    bench.runner.poison = 13
    await bench.hold()
    for number, level in ((1, 11), (2, 13), (3, 15)):
        bench.submit(number, level=level)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 4)
    assert isinstance(bench.error(2), Internal)
    assert "poisoned" not in bench.error(2).detail
    assert (bench.label(1), bench.label(3)) == (11, 15)


@pytest.mark.settings(lanes=2, batch=3)
async def test_a_failed_batch_does_not_disturb_another_lane(bench: DispatcherBench) -> None:
    """While a batch fails, the batch on the other lane is answered; so are the failed batch's good jobs."""
    bench.runner.poison = 13
    held = HeldBatches(bench)
    for number, level in enumerate((13, 1, 2, 3, 4)):
        bench.submit(number, level=level)
    await bench.until(lambda: len(held) == 2)
    held.release(held.number_of(13))
    await bench.until(lambda: len(held) == 3)  # the first of the three runs again, alone
    held.release(held.number_of(3))
    await bench.until(lambda: {3, 4} <= bench.results.keys())
    assert (bench.label(3), bench.label(4)) == (3, 4)
    while len(bench.results) < 5:
        held.release_all()
        await asyncio.sleep(0.001)
    assert isinstance(bench.error(0), Internal)
    assert (bench.label(1), bench.label(2)) == (1, 2)


async def test_an_output_that_is_not_finite_fails_alone(bench: DispatcherBench) -> None:
    """Where one output of a batch is NaN, its job gets an error and the others their answers, from the same batch."""
    bench.runner.not_finite = {13}
    await bench.hold()
    for number, level in ((1, 11), (2, 13), (3, 15)):
        bench.submit(number, level=level)
    bench.runner.unblocked.set()
    await bench.until(lambda: len(bench.results) == 4)
    assert isinstance(bench.error(2), NotFinite)
    assert bench.error(2).code == Internal.code
    assert (bench.label(1), bench.label(3)) == (11, 15)
    assert [images for _, images in bench.runner.batches] == [1, 3]
    assert bench.registry.get_sample_value("convmlp_non_finite_outputs_total", {"model": "fake_classify"}) == 1
