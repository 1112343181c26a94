"""The views of several workers, merged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.types import Deployment, Task
from service.types import Readiness, StoredModel
from service.wire.messages import Phase
from service.wire.worker_view import ServedModel, WorkerView, merge_models, merge_readiness, merge_stores
from tests.fakes import fake_bundle

A, B, C = (fake_bundle(Task.CLASSIFY, name).config for name in "abc")
NEW_A = fake_bundle(Task.CLASSIFY, "a", weights=b"new").config
CONFIGS = {"a": A, "b": B, "c": C, "a2": NEW_A}


def offer(version: str, *, ready: bool = True, device: str = "cuda:0", precision: str = "fp32") -> ServedModel:
    return ServedModel(version, CONFIGS[version], ready, device, precision)


def view(
    *offers: ServedModel, phase: Phase | None = Phase.READY, reason: str = "ready", retry_after_s: float = 1.0
) -> WorkerView:
    return WorkerView(phase, reason, retry_after_s, offers)


def lost(*versions: str) -> WorkerView:
    offers = tuple(offer(version, ready=False, device="", precision="") for version in versions)
    return WorkerView(None, "lost", 2.0, offers)


LOST = WorkerView(None, "lost", 2.0, None)


def test_each_model_is_listed_once_with_all_its_devices() -> None:
    """A model is ready where any worker is; its devices are those that answer, in the workers' order."""
    views = [
        view(offer("a"), offer("b", ready=False)),
        view(offer("a", device="cuda:1", precision="bf16"), offer("b", ready=False, device="cuda:1")),
        view(offer("a", device="cuda:2", ready=False), offer("b", ready=False, device="cuda:2")),
    ]
    a, b = merge_models(views) or ()
    assert (a.config, a.ready, a.devices, a.device, a.precision) == (
        A,
        True,
        ("cuda:0", "cuda:1"),
        "cuda:0, cuda:1",
        "fp32, bf16",
    )
    assert (b.ready, b.device, b.precision) == (False, "cuda:0, cuda:1, cuda:2", "fp32")


def test_the_form_of_a_network_is_kept() -> None:
    """As a worker that serves the model reported it."""
    deployment = Deployment("deploy", 2e-6)
    (status,) = merge_models([view(replace(offer("a"), deployment=deployment))]) or ()
    assert status.deployment == deployment


def test_workers_on_one_kind_of_device() -> None:
    """Two workers on the CPU: callers see `cpu` once, and the number of workers is kept."""
    (status,) = merge_models([view(offer("a", device="cpu")), view(offer("a", device="cpu"))]) or ()
    assert (status.device, status.devices) == ("cpu", ("cpu", "cpu"))


def test_the_order_is_that_of_a_present_worker() -> None:
    """The first model of a task is its default: a lost worker's order does not decide it."""
    names = [status.config.name for status in merge_models([lost("c", "b", "a"), view(offer("a"), offer("b"))]) or ()]
    assert names == ["a", "b", "c"]


def test_a_lost_worker_s_models_are_known_and_not_ready() -> None:
    """A model that only a lost worker served is still listed, because the worker is restarted."""
    (status,) = merge_models([lost("a"), LOST]) or ()
    assert (status.config, status.ready, status.device, status.precision) == (A, False, "", "")
    assert merge_models([LOST, LOST]) is None
    assert merge_models([LOST, view()]) == ()


def test_of_two_versions_the_one_with_more_ready_workers_counts() -> None:
    """While a model is replaced on one worker after the other, callers get the version that most workers answer for."""
    old, new = offer("a"), offer("a2")
    for offers, config in (((old, new, old), A), ((old, new, new), NEW_A), ((old, new), A), ((new, old), NEW_A)):
        (status,) = merge_models([view(one) for one in offers]) or ()
        assert status.config is config
        assert len(status.devices) == sum(CONFIGS[one.version] is config for one in offers)
    (status,) = merge_models([view(offer("a", ready=False)), view(offer("a2"))]) or ()
    assert (status.config, status.ready) == (NEW_A, True)


STARTING = view(offer("a", ready=False), phase=Phase.STARTING, reason="it is loading", retry_after_s=3.0)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([LOST, LOST], Readiness(False, "lost", 2.0)),
        ([LOST, STARTING], Readiness(False, "it is loading", 3.0)),
        ([lost("a"), view(offer("a"), retry_after_s=0.5)], Readiness(True, "ready, with 1 of 2 workers", 0.5)),
        ([STARTING, view(offer("a"))], Readiness(True, "ready, with 1 of 2 workers", 1.0)),
        ([view(offer("a"), retry_after_s=4.0), view(offer("a"), retry_after_s=2.0)], Readiness(True, "ready", 2.0)),
        ([lost("b"), view(offer("a"))], Readiness(False, "not ready: b", 1.0)),
        ([view(offer("a", ready=False)), view(offer("a", ready=False))], Readiness(False, "not ready: a", 1.0)),
        ([view(offer("a", ready=False)), view(offer("a"))], Readiness(True, "ready", 1.0)),
        ([view(), view()], Readiness(False, "no model is served; the last one was unloaded", 1.0)),
        ([view(offer("a"), retry_after_s=0.25)], Readiness(True, "ready", 0.25)),
    ],
)
def test_ready_means_that_each_model_is_ready_on_a_worker(views: list[WorkerView], expected: Readiness) -> None:
    """The reason names what is missing; Retry-After is that of the worker that is free first."""
    assert merge_readiness(views) == expected


def test_a_stored_model_has_its_best_state() -> None:
    """Ready before served, served before stored; each name once, sorted."""
    on_disk = StoredModel("b", False, False, "it is not loaded")
    broken = StoredModel("b", True, False, "it does not give its committed answer")
    fit = StoredModel("b", True, True, "")
    other = StoredModel("a", False, False, "it is not loaded")
    assert merge_stores([[on_disk, other], [broken]]) == (other, broken)
    assert merge_stores([[broken], [fit], [on_disk]]) == (fit,)
    assert merge_stores([[], []]) == ()
