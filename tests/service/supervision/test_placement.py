"""Which workers `serve` starts, and on what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings, usable_cores
from service.supervision.placement import Unplaceable, place_workers

FOLDER = Path("/run/convmlp")


def placed(gpus: int = 0, **settings: Any) -> tuple[Settings, ...]:  # noqa: ANN401
    return place_workers(Settings(**settings), FOLDER, lambda: gpus)


@pytest.mark.parametrize(
    ("gpus", "settings", "devices"),
    [
        (0, {}, ["auto"]),
        (1, {}, ["auto"]),
        (3, {}, ["cuda:0", "cuda:1", "cuda:2"]),
        (2, {"device": "cuda"}, ["cuda:0", "cuda:1"]),
        (0, {"device": "cuda"}, ["cuda"]),
        (3, {"device": "cpu"}, ["cpu"]),
        (3, {"device": "cuda:1"}, ["cuda:1"]),
        (3, {"workers": 1}, ["auto"]),
        (3, {"workers": 2}, ["cuda:0", "cuda:1"]),
        (2, {"workers": 4}, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        (0, {"workers": 2}, ["auto", "auto"]),
        (3, {"workers": 2, "device": "cpu"}, ["cpu", "cpu"]),
        (3, {"workers": 2, "device": "cuda:1"}, ["cuda:1", "cuda:1"]),
        (3, {"worker_address": "tcp://127.0.0.1:1,tcp://127.0.0.1:2"}, ["cuda:0", "cuda:1"]),
        (3, {"worker_address": "tcp://127.0.0.1:1"}, ["auto"]),
    ],
)
def test_each_gpu_gets_a_worker_unless_set_otherwise(gpus: int, settings: dict[str, Any], devices: list[str]) -> None:
    """By default there is one worker per GPU, or one without a GPU; a set number of workers or addresses wins."""
    assert [one.device for one in placed(gpus, **settings)] == devices


def test_gpus_are_counted_only_where_they_matter() -> None:
    """A service on the CPU, on a certain GPU, or of one worker does not load a driver."""

    def unasked() -> int:
        raise AssertionError("the driver was asked")

    for settings in ({"device": "cpu"}, {"device": "cuda:0"}, {"workers": 1}, {"worker_address": "ipc:///x"}):
        place_workers(Settings(**settings), FOLDER, unasked)


def test_workers_have_what_is_their_own() -> None:
    """Addresses and metrics ports differ, the cores are shared out; what callers load is written to one file."""
    two = placed(workers=2, device="cpu", worker_metrics_port=9000)
    assert [one.worker_address for one in two] == [("ipc:///run/convmlp/worker-0",), ("ipc:///run/convmlp/worker-1",)]
    assert [one.worker_metrics_port for one in two] == [9000, 9001]
    assert [one.compute_threads for one in two] == [max(1, usable_cores() // 2)] * 2
    assert {one.served_models_file for one in two} == {FOLDER / "served-models.json"}
    chosen = placed(workers=2, worker_metrics_port=0, compute_threads=3, served_models_file="/data/served.json")
    assert [one.worker_metrics_port for one in chosen] == [0, 0]
    assert [one.compute_threads for one in chosen] == [3, 3]
    assert {one.served_models_file for one in chosen} == {Path("/data/served.json")}


def test_a_lone_worker_keeps_its_settings() -> None:
    """One worker keeps all cores and its port."""
    (one,) = placed(workers=1, worker_metrics_port=9000)
    assert (one.worker_metrics_port, one.compute_threads, one.device) == (9000, 0, "auto")
    (given,) = placed(worker_address="tcp://127.0.0.1:5555")
    assert given.worker_address == ("tcp://127.0.0.1:5555",)


@pytest.mark.parametrize(
    "settings",
    [
        {"workers": 3, "worker_address": "ipc:///a,ipc:///b"},
        {"workers": 2, "worker_metrics_port": 65535},
        {"worker_address": "dns://workers:5555"},
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any]) -> None:
    """Settings that cannot all be kept are an error with the way out, before anything is started."""
    with pytest.raises(Unplaceable, match=r"set only one of the two|choose a lower|which only `rest` and `grpc` take"):
        placed(**settings)
