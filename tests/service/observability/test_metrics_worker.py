"""A front-end's metrics of its workers, with real sockets between them and a fake device."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from model.types import Task
from service.frontend.core.frontend import open_front_end
from service.settings import Settings
from tests.fakes import fake_worker
from tests.waiting import until


def metric(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(f"convmlp_{name}")


async def test_a_worker_that_comes_back_is_another_one(tmp_path: Path) -> None:
    """A restart counts when the lost worker's successor answers; the first worker is not a restart."""
    address = f"ipc://{tmp_path}/worker"
    settings = Settings(heartbeat_interval_ms=50, worker_address=(address,))
    async with open_front_end(settings) as front_end:
        registry = front_end.registry
        for restarts in range(3):
            assert metric(registry, "worker_up") == metric(registry, "workers_up") == 0
            async with fake_worker(settings, address, tasks=[Task.CLASSIFY]):
                await until(lambda: metric(registry, "worker_up") == 1)
                assert metric(registry, "workers_up") == 1
                await until(lambda expected=restarts: metric(registry, "worker_restarts_total") == expected)  # type: ignore[misc]
            await until(lambda: metric(registry, "worker_up") == 0)


async def test_of_two_workers_one_is_seen_to_be_lost(tmp_path: Path) -> None:
    """`workers_up` is the number of workers that answer, `worker_up` whether all do."""
    addresses = tuple(f"ipc://{tmp_path}/{number}" for number in range(2))
    settings = Settings(heartbeat_interval_ms=50, worker_address=addresses)
    async with (
        fake_worker(settings, addresses[0], tasks=[Task.CLASSIFY]),
        open_front_end(settings) as front_end,
    ):
        registry = front_end.registry
        async with fake_worker(settings, addresses[1], tasks=[Task.CLASSIFY]):
            await until(lambda: metric(registry, "workers_up") == 2)
            assert metric(registry, "worker_up") == 1
        await until(lambda: metric(registry, "workers_up") == 1)
        assert metric(registry, "worker_up") == 0


async def test_bounds_have_samples_beside_what_they_bound() -> None:
    """Front-end and worker expose the bounds of their settings; nothing is in flight or waiting yet."""
    settings = Settings(heartbeat_interval_ms=50, max_in_flight=7, max_queue_images=5, max_queue_mpx=3)
    async with fake_worker(settings, tasks=[Task.CLASSIFY]) as worker:
        async with open_front_end(settings.with_changes(worker_address=worker.address)) as front_end:
            assert metric(front_end.registry, "in_flight_limit") == 7
            assert metric(front_end.registry, "in_flight_requests") == 0
        await until(lambda: metric(worker.registry, "queue_limit") == 5)
        assert metric(worker.registry, "queue_pixels_limit") == 3 * 10**6
        await until(lambda: metric(worker.registry, "queue_pixels") == 0)  # the self-check has ended
