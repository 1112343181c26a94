"""Metrics of real processes with real files: each process's own, and all together."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

from service.observability.exposition import forget_process
from tests.service.observability.metrics_process import metrics_process

COUNTED = "convmlp_requests_total"
OK = {"transport": "rest", "task": "classify", "model": "m", "outcome": "ok"}
REQUEST = ("request", "rest", "classify", "m", "ok", 0.01)


def test_a_process_without_a_folder_exposes_its_own_metrics() -> None:
    """Without a shared folder a process exposes its counts, the version, and its memory, CPU time and descriptors."""
    with metrics_process("rest") as rest:
        rest.do(*REQUEST)
        for scrape in (rest.scrape(), rest.scrape_all()):
            assert scrape(COUNTED, **OK) == 1
            assert scrape("convmlp_build_info", version=version("convmlp-serving")) == 1
            memory = scrape("process_resident_memory_bytes", process="rest")
            assert memory is not None
            assert 2**22 < memory < 2**32
            for name in ("process_cpu_seconds_total", "process_open_fds", "process_start_time_seconds"):
                assert (scrape(name, process="rest") or 0) > 0
            assert "_created" not in scrape.text


def test_each_process_exposes_the_sum_of_all(tmp_path: Path) -> None:
    """Of two front-ends and a worker each exposes the counts of all three and the process figures of each."""
    with (
        metrics_process("rest-0", tmp_path) as one,
        metrics_process("grpc-0", tmp_path) as two,
        metrics_process("worker-0", tmp_path) as worker,
    ):
        one.do(*REQUEST)
        two.do(*REQUEST)
        one.do("in_flight", 2)
        two.do("in_flight", 3)
        one.do("in_flight_limit", 10)
        two.do("in_flight_limit", 10)
        one.do("stage", "decode", "classify", 0.01)
        worker.do("add_model", "m", "classify")
        worker.do("waited", "m", 0.02)
        worker.do("batch", "m", 3, 0.5)
        for scrape in (one.scrape_all(), two.scrape_all(), worker.scrape_all()):
            assert scrape(COUNTED, **OK) == 2
            assert scrape("convmlp_in_flight_requests") == 5
            assert scrape("convmlp_in_flight_limit") == 20
            assert scrape("convmlp_batch_size_sum", model="m") == 3
            assert scrape("convmlp_images_total", model="m") == 3
            assert scrape("convmlp_device_busy_seconds_total", model="m") == 0.5
            for stage, images in (("decode", 1), ("queue", 1), ("infer", 3)):
                assert scrape("convmlp_stage_duration_seconds_count", stage=stage, task="classify") == images
            assert scrape.values("process_resident_memory_bytes", "process") == {"rest-0", "grpc-0", "worker-0"}
            assert scrape("convmlp_build_info", version=version("convmlp-serving")) == 1


def test_a_worker_exposes_its_own_metrics_alone(tmp_path: Path) -> None:
    """A worker's port has no metrics of front-ends nor of another worker: scraping all workers counts nothing twice."""
    with (
        metrics_process("rest-0", tmp_path) as rest,
        metrics_process("worker-0", tmp_path) as one,
        metrics_process("worker-1", tmp_path) as two,
    ):
        rest.do(*REQUEST)
        for worker, images in ((one, 2), (two, 5)):
            worker.do("add_model", "m", "classify")
            worker.do("batch", "m", images, 0.1)
        assert one.scrape()("convmlp_images_total", model="m") == 2
        assert two.scrape()("convmlp_images_total", model="m") == 5
        assert rest.scrape_all()("convmlp_images_total", model="m") == 7
        scrape = one.scrape()
        assert scrape(COUNTED, **OK) is None
        assert scrape.values("process_resident_memory_bytes", "process") == {"worker-0"}


def test_a_successor_counts_on(tmp_path: Path) -> None:
    """A killed process's counts stay, and its successor adds to them; its gauges of the present are removed."""
    with metrics_process("rest-0", tmp_path) as witness:
        witness.do("in_flight", 1)
        with metrics_process("grpc-0", tmp_path) as killed:
            killed.do(*REQUEST)
            killed.do("in_flight", 7)
            killed.do("workers_up", 1, 1)
            assert witness.scrape_all()("convmlp_in_flight_requests") == 8
            killed.kill()
        forget_process("grpc-0", tmp_path)
        scrape = witness.scrape_all()
        assert scrape("convmlp_in_flight_requests") == 1
        assert scrape(COUNTED, **OK) == 1
        assert scrape.values("process_open_fds", "process") == {"rest-0"}
        with metrics_process("grpc-0", tmp_path) as successor:
            successor.do(*REQUEST)
            scrape = witness.scrape_all()
            assert scrape(COUNTED, **OK) == 2
            assert scrape("convmlp_in_flight_requests") == 1


def test_a_lost_worker_leaves_no_readiness(tmp_path: Path) -> None:
    """After `forget_process` a worker has no ready model and no waiting image; its counts stay."""
    with metrics_process("rest-0", tmp_path) as rest:
        with metrics_process("worker-0", tmp_path) as worker:
            worker.do("add_model", "m", "classify")
            worker.do("model_ready", "m", {"ready": True})
            worker.do("queue", "m", 4, 100)
            worker.do("queue_limits", 256, 10**8)
            worker.do("batch", "m", 1, 0.1)
            assert rest.scrape_all()("convmlp_model_ready", model="m") == 1
            worker.kill()
        forget_process("worker-0", tmp_path)
        scrape = rest.scrape_all()
        for name in ("convmlp_model_ready", "convmlp_queue_depth", "convmlp_queue_limit"):
            assert name not in scrape.families
        assert scrape("convmlp_images_total", model="m") == 1


def test_one_front_end_without_workers_is_seen(tmp_path: Path) -> None:
    """`worker_up` and `workers_up` are the worst that any front-end sees, `model_ready` the worst of any worker."""
    with metrics_process("rest-0", tmp_path) as one, metrics_process("rest-1", tmp_path) as two:
        one.do("workers_up", 2, 2)
        two.scrape()  # it has started
        assert one.scrape_all()("convmlp_worker_up") == 0
        two.do("workers_up", 1, 2)
        assert one.scrape_all()("convmlp_worker_up") == 0
        assert one.scrape_all()("convmlp_workers_up") == 1
        two.do("workers_up", 2, 2)
        assert one.scrape_all()("convmlp_worker_up") == 1
        assert one.scrape_all()("convmlp_workers_up") == 2


def test_an_unloaded_model_has_no_readiness(tmp_path: Path) -> None:
    """With a shared folder or without, its readiness and queue vanish and its counts stay; a new load restores them."""
    for folder in (None, tmp_path):
        with metrics_process("worker-0", folder) as worker:
            for model in ("stays", "goes"):
                worker.do("add_model", model, "classify")
                worker.do("model_ready", model, {"ready": True})
                worker.do("batch", model, 1, 0.1)
            worker.do("remove_model", "goes")
            for scrape in (worker.scrape(), worker.scrape_all()):
                assert scrape.values("convmlp_model_ready", "model") == {"stays"}
                assert scrape.values("convmlp_queue_depth", "model") == {"stays"}
                assert scrape.values("convmlp_images_total", "model") == {"stays", "goes"}
            worker.do("add_model", "goes", "classify")
            assert worker.scrape()("convmlp_model_ready", model="goes") == 0


def test_restarts_are_counted_once(tmp_path: Path) -> None:
    """A front-end without a supervisor counts its workers' restarts; a supervised one leaves that to the supervisor."""
    with metrics_process("rest") as alone:
        assert alone.scrape()("convmlp_worker_restarts_total") == 0
        alone.do("worker_replaced")
        assert alone.scrape()("convmlp_worker_restarts_total") == 1
    with metrics_process("rest-0", tmp_path) as supervised:
        supervised.do("worker_replaced")
        assert supervised.scrape_all()("convmlp_worker_restarts_total") is None


def test_a_worker_that_is_half_forgotten_does_no_harm(tmp_path: Path) -> None:
    """While a worker's files are removed one after the other, a scrape exposes the rest."""
    with metrics_process("rest-0", tmp_path) as rest, metrics_process("worker-0", tmp_path) as worker:
        worker.do("add_model", "m", "classify")
        worker.kill()
        (tmp_path / "gauge_livesum_worker-0.db").unlink()
        scrape = rest.scrape_all()
        assert scrape("convmlp_model_ready", model="m") == 0
        assert "convmlp_queue_depth" not in scrape.families


def test_a_process_that_is_just_starting_does_no_harm(tmp_path: Path) -> None:
    """A scrape succeeds while a new process's metrics files and pid file are still empty."""
    with metrics_process("rest-0", tmp_path) as rest:
        rest.do(*REQUEST)
        (tmp_path / "counter_rest-1.db").touch()
        (tmp_path / "rest-1.pid").touch()
        scrape = rest.scrape_all()
        assert scrape(COUNTED, **OK) == 1
        assert scrape.values("process_open_fds", "process") == {"rest-0"}


def test_every_process_knows_which_gpus_are_used(tmp_path: Path) -> None:
    """A worker's GPU is in its own metrics and in those of all processes, until the worker is forgotten."""
    with metrics_process("rest-0", tmp_path) as rest:
        with metrics_process("worker-0", tmp_path) as worker:
            assert "gpu" not in rest.scrape_all().text
            worker.do("uses_gpu", "GPU-1", "NVIDIA H200", "cuda:0")
            for scrape in (worker.scrape(), rest.scrape_all()):
                assert scrape("convmlp_gpu_info", gpu="GPU-1", name="NVIDIA H200", device="cuda:0") == 1
            worker.kill()
        forget_process("worker-0", tmp_path)
        assert "gpu" not in rest.scrape_all().text


def test_a_process_that_ended_has_no_figures(tmp_path: Path) -> None:
    """A process that ended has no process figures, even before its supervisor notices; the others keep theirs."""
    with metrics_process("rest-0", tmp_path) as rest:
        with metrics_process("rest-1", tmp_path) as ended:
            ended.scrape()
            ended.kill()
        assert (tmp_path / "rest-1.pid").read_text() == str(ended.pid)
        assert not os.path.exists(f"/proc/{ended.pid}")  # noqa: PTH110
        assert rest.scrape_all().values("process_open_fds", "process") == {"rest-0"}
