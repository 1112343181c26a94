"""Metrics of real processes with real files: each process's own, and all together.

A scrape of a process shares its metrics.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx2
import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from service.observability.exposition import MAX_SCRAPES, metrics_server
from service.observability.snapshots import FORMAT, PUBLISH_INTERVAL_S, SUFFIX, Snapshot
from tests.service.observability.metrics_process import metrics_process, wait_for
from tests.waiting import PATIENCE_S

COUNTED = "convmlp_requests_total"
DROPPED = "convmlp_metrics_snapshots_dropped_total"
UNREADABLE = "convmlp_metrics_snapshots_unreadable_total"
OK = {"transport": "rest", "task": "classify", "model": "m", "outcome": "ok"}
REQUEST = ("request", "rest", "classify", "m", "ok", 0.01)


def test_a_process_without_a_folder_exposes_its_own_metrics() -> None:
    """Without a shared folder a process exposes its counts, the version, and its memory, CPU time and descriptors."""
    with metrics_process("rest") as rest:
        rest.do(*REQUEST)
        # CPU time is counted in hundredths of a second, of which a forked process may not have used one yet.
        while not rest.scrape()("process_cpu_seconds_total", process="rest"):
            pass
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
        one.do("limits", 10, 1)
        two.do("limits", 10, 1)
        one.do("stage", "decode", "classify", 0.01)
        worker.do("add_model", "m", "classify")
        worker.do("queued", "m", 0.02)
        worker.do("batch", "m", 3, 0.5)
        for process in (one, two, worker):
            process.scrape()
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


def test_exemplars_of_all_processes(tmp_path: Path) -> None:
    """OpenMetrics has the latest exemplar of each bucket and counter, whichever process has it; text has none."""
    with metrics_process("rest-0", tmp_path) as one, metrics_process("rest-1", tmp_path) as two:
        one.do(*REQUEST, {"trace_id": "a"})
        two.do(*REQUEST[:-1], 20.0, {"trace_id": "b"})
        two.do(*REQUEST[:-1], 0.009, {"trace_id": "c"})
        two.do(*REQUEST)
        two.scrape()
        for witness in (one, two):
            families = {one.name: one for one in parse_openmetrics(witness.do("scrape_openmetrics"))}
            buckets = {
                sample.labels["le"]: (sample.exemplar.labels["trace_id"], sample.exemplar.value)
                for sample in families["convmlp_request_duration_seconds"].samples
                if sample.exemplar
            }
            assert buckets == {"0.01": ("c", 0.009), "30.0": ("b", 20.0)}
            (counter,) = families["convmlp_requests"].samples
            assert counter.value == 4
            assert counter.exemplar.labels == {"trace_id": "c"}
            assert "trace_id" not in witness.scrape_all().text


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
            assert killed.scrape()(COUNTED, **OK) == 1
            assert witness.scrape_all()("convmlp_in_flight_requests") == 8
            killed.kill()
        scrape = witness.scrape_all()
        assert scrape("convmlp_in_flight_requests") == 1
        assert scrape(COUNTED, **OK) == 1
        assert scrape.values("process_open_fds", "process") == {"rest-0"}
        with metrics_process("grpc-0", tmp_path) as successor:
            successor.do(*REQUEST)
            assert successor.scrape()(COUNTED, **OK) == 2
            scrape = witness.scrape_all()
            assert scrape(COUNTED, **OK) == 2
            assert scrape("convmlp_in_flight_requests") == 1


def test_a_lost_worker_leaves_no_readiness(tmp_path: Path) -> None:
    """A killed worker has no ready model and no waiting image; its counts stay."""
    with metrics_process("rest-0", tmp_path) as rest:
        with metrics_process("worker-0", tmp_path) as worker:
            worker.do("add_model", "m", "classify")
            worker.do("model_ready", "m", {"ready": True})
            worker.do("queue", 4, 100)
            worker.do("queue_limits", 256, 10**8)
            worker.do("batch", "m", 1, 0.1)
            worker.scrape()
            assert rest.scrape_all()("convmlp_model_ready", model="m") == 1
            assert rest.scrape_all()("convmlp_queue_depth", model="m") == 4
            worker.kill()
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
        two.scrape()
        assert one.scrape_all()("convmlp_worker_up") == 0
        assert one.scrape_all()("convmlp_workers_up") == 1
        two.do("workers_up", 2, 2)
        two.scrape()
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


def test_metrics_are_shared_without_a_scrape(tmp_path: Path) -> None:
    """What a process counts reaches the others by itself, and so does what it counted last before it ended."""
    with metrics_process("rest-0", tmp_path) as one, metrics_process("rest-1", tmp_path) as two:
        two.do(*REQUEST)
        wait_for(lambda: one.scrape_all()(COUNTED, **OK) == 1)
        two.do(*REQUEST)
        two.end()
        assert one.scrape_all()(COUNTED, **OK) == 2


def test_what_did_not_change_is_not_written(tmp_path: Path) -> None:
    """An idle process leaves its file alone."""
    with metrics_process("rest-0", tmp_path) as rest:
        rest.scrape()
        before = snapshot_of("rest-0", tmp_path).stat()
        time.sleep(3 * PUBLISH_INTERVAL_S)
        assert snapshot_of("rest-0", tmp_path).stat() == before


def test_a_deleted_folder_comes_back(tmp_path: Path) -> None:
    """After something deleted the folder, counts go on where they were, those of ended processes included."""
    folder = tmp_path / "metrics"
    with metrics_process("rest-0", folder) as one, metrics_process("rest-1", folder) as two:
        with metrics_process("grpc-0", folder) as ended:
            ended.do(*REQUEST)
            ended.scrape()
        one.do(*REQUEST)
        two.do(*REQUEST)
        one.scrape()
        two.scrape()
        for process in (one, two):
            assert process.scrape_all()(COUNTED, **OK) == 3
        # At once, for the processes write into it meanwhile.
        shutil.rmtree(folder.rename(tmp_path / "deleted"))
        one.do(*REQUEST)
        assert one.scrape_all()(COUNTED, **OK) == 4
        wait_for(lambda: two.scrape_all()(COUNTED, **OK) == 4)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert one.scrape()(DROPPED) == 0


def test_a_snapshot_that_cannot_be_written_is_dropped_and_counted(tmp_path: Path) -> None:
    """Without a place for its snapshots a process counts and exposes its own metrics; later it shares them again."""
    folder = tmp_path / "absent" / "metrics"
    with metrics_process("rest-0", folder) as rest:
        rest.do(*REQUEST)
        scrape = rest.scrape_all()
        assert scrape(COUNTED, **OK) == 1
        wait_for(lambda: (rest.scrape()(DROPPED) or 0) > 2)
        folder.parent.mkdir()
        wait_for(snapshot_of("rest-0", folder).is_file)
        assert [file.name for file in folder.iterdir()] == [f"rest-0{SUFFIX}"]


def test_a_full_disk_costs_a_snapshot(tmp_path: Path) -> None:
    """A file that cannot grow leaves the last whole snapshot in place, and no half one beside it."""
    with metrics_process("rest-0", tmp_path) as rest, metrics_process("rest-1", tmp_path) as witness:
        rest.do(*REQUEST)
        rest.scrape()
        resource.prlimit(rest.pid, resource.RLIMIT_FSIZE, (100, 100))
        rest.do(*REQUEST)
        assert rest.scrape_all()(COUNTED, **OK) == 2
        assert (rest.scrape()(DROPPED) or 0) > 0
        assert witness.scrape_all()(COUNTED, **OK) == 1
        assert {file.suffix for file in tmp_path.iterdir()} == {SUFFIX}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"no snapshot",
        msgspec.msgpack.encode([FORMAT + 1, 1, 1, []]),
        msgspec.msgpack.encode([FORMAT, 1, 1, [["name"]]]),
    ],
)
def test_a_damaged_snapshot_is_left_out_and_counted(tmp_path: Path, damage: bytes) -> None:
    """Of a process whose snapshot was read before, the earlier one stays: counters do not fall and rise again."""
    with metrics_process("rest-0", tmp_path) as rest:
        with metrics_process("grpc-0", tmp_path) as known:
            known.do(*REQUEST)
            known.scrape()
            assert rest.scrape_all()(COUNTED, **OK) == 1
            known.kill()
        for role in ("grpc-0", "grpc-1"):
            snapshot_of(role, tmp_path).write_bytes(damage)
        assert rest.scrape_all()(COUNTED, **OK) == 1
        assert rest.scrape()(UNREADABLE) == 2
        with metrics_process("grpc-1", tmp_path) as successor:
            assert successor.scrape()(UNREADABLE) == 1
        scrape = rest.scrape_all()
        assert scrape(COUNTED, **OK) == 1
        assert scrape.values("process_open_fds", "process") == {"rest-0"}


def test_every_process_knows_which_gpus_are_used(tmp_path: Path) -> None:
    """A worker's GPU is in its own metrics and in those of all processes, until the worker ends."""
    with metrics_process("rest-0", tmp_path) as rest:
        with metrics_process("worker-0", tmp_path) as worker:
            assert "gpu" not in rest.scrape_all().text
            worker.do("uses_gpu", "GPU-1", "NVIDIA H200", "cuda:0")
            for scrape in (worker.scrape(), rest.scrape_all()):
                assert scrape("convmlp_gpu_info", gpu="GPU-1", name="NVIDIA H200", device="cuda:0") == 1
            worker.kill()
        assert "gpu" not in rest.scrape_all().text


def test_a_process_that_ended_has_no_figures(tmp_path: Path) -> None:
    """A process that ended has no process figures, even if another one now has its number; the others keep theirs."""
    with metrics_process("rest-0", tmp_path) as rest:
        with metrics_process("rest-1", tmp_path) as ended:
            ended.scrape()
            assert rest.scrape_all().values("process_open_fds", "process") == {"rest-0", "rest-1"}
            ended.kill()
        assert rest.scrape_all().values("process_open_fds", "process") == {"rest-0"}
        snapshot = msgspec.msgpack.decode(snapshot_of("rest-1", tmp_path).read_bytes(), type=Snapshot)
        reused = msgspec.structs.replace(snapshot, pid=os.getpid())
        snapshot_of("rest-1", tmp_path).write_bytes(msgspec.msgpack.encode(reused))
        assert rest.scrape_all().values("process_open_fds", "process") == {"rest-0"}


def snapshot_of(role: str, folder: Path) -> Path:
    return folder / f"{role}{SUFFIX}"


@pytest.fixture
def metrics_port() -> Iterator[int]:
    """A metrics port that waits for its callers for half a second."""
    registry = CollectorRegistry()
    Counter("convmlp_counted", "A counter", registry=registry).inc(2, {"trace_id": "a"})
    with metrics_server(registry, "127.0.0.1", 0, 0.5) as port:
        yield port


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("coding", ["gzip", "gzip;q=0", None])
@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text; version=newest", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;q=0", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;q=0.4, text/plain", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;q=0.4, */*;q=0.9", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "text/plain;q=0.4, application/openmetrics-text;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        ("text/plain, application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_a_metrics_port_negotiates(
    metrics_port: int, accept: str, media_type: str, coding: str | None, method: str
) -> None:
    """The ports of workers and of gRPC answer as REST's /metrics does, by the qualities of what the caller accepts."""
    headers = {"Accept": accept, "Accept-Encoding": coding or "identity"}
    response = httpx2.request(method, f"http://127.0.0.1:{metrics_port}/metrics", headers=headers, timeout=60)
    assert (response.status_code, response.headers["content-type"]) == (200, media_type)
    assert response.headers.get("content-encoding") == (coding if coding == "gzip" else None)
    if method == "HEAD":
        assert response.content == b""
        assert int(response.headers["content-length"]) > 0
    else:
        assert "convmlp_counted_total 2.0" in response.text
        assert ("trace_id" in response.text) == ("openmetrics" in media_type)


def test_silent_connections_do_not_take_a_metrics_port(metrics_port: int) -> None:
    """Connections beyond the bound are closed, and those that send nothing make room again."""
    silent = [socket.create_connection(("127.0.0.1", metrics_port), timeout=PATIENCE_S) for _ in range(MAX_SCRAPES + 3)]
    assert [connection.recv(1) for connection in silent] == [b""] * len(silent)
    for connection in silent:
        connection.close()
    assert httpx2.get(f"http://127.0.0.1:{metrics_port}/metrics", timeout=60).status_code == 200


def test_a_metrics_port_that_is_taken(metrics_port: int) -> None:
    """A port in use is an error, and a port is free once its server has ended."""
    with pytest.raises(OSError, match="in use"), metrics_server(CollectorRegistry(), "127.0.0.1", metrics_port):
        pass
    with metrics_server(CollectorRegistry(), "127.0.0.1", 0) as port:
        pass
    with metrics_server(CollectorRegistry(), "127.0.0.1", port) as again:
        assert again == port
