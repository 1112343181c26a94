"""The metrics: their names and labels, and what each counts."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from model.errors import ConvMLPError, ImageUndecodable
from service.errors import DOMAIN_ERRORS, Overloaded, RateLimited, Refusal, RetryLater, Unauthenticated
from service.observability.metrics import GAUGE_MERGE, FrontEndMetrics, WorkerMetrics
from tests.service.observability.metrics_process import metrics_process

FRONT_END = {
    "convmlp_requests_total": {"transport", "task", "model", "outcome"},
    "convmlp_request_duration_seconds_count": {"transport", "task"},
    "convmlp_model_request_duration_seconds_count": {"model"},
    "convmlp_stage_duration_seconds_count": {"stage", "task"},
    "convmlp_in_flight_requests": set(),
    "convmlp_rejected_total": {"reason"},
    "convmlp_worker_up": set(),
    "convmlp_worker_restarts_total": set(),
}
WORKER = {
    "convmlp_stage_duration_seconds_count": {"stage", "task"},
    "convmlp_batch_size_count": {"model"},
    "convmlp_queue_depth": {"model"},
    "convmlp_images_total": {"model"},
    "convmlp_model_ready": {"model"},
}


def test_front_ends_names_are_the_contracts() -> None:
    """A front-end exposes each of its metrics under the contract's name and labels."""
    with metrics_process("rest") as rest:
        rest.do("request", "rest", "classify", "m", "ok", 0.01)
        rest.do("stage", "decode", "classify", 0.01)
        scrape = rest.scrape()
    for name, labels in FRONT_END.items():
        samples = [one for family in scrape.families.values() for one in family.samples if one.name == name]
        assert samples, name
        assert all(set(one.labels) == labels for one in samples), name


def test_a_workers_names_are_the_contracts() -> None:
    """A worker exposes each of its metrics under the contract's name and labels, and without a GPU none of a GPU."""
    with metrics_process("worker") as worker:
        worker.do("add_model", "m", "classify")
        worker.do("queued", "m", 0.01)
        worker.do("batch", "m", 1, 0.01)
        scrape = worker.scrape()
    for name, labels in WORKER.items():
        samples = [one for family in scrape.families.values() for one in family.samples if one.name == name]
        assert samples, name
        assert all(set(one.labels) == labels for one in samples), name
    assert "gpu" not in scrape.text


def test_all_reasons_have_samples_from_the_start() -> None:
    """A reason without refusals has the sample 0, so that `rate()` sees the first refusal."""
    registry = CollectorRegistry()
    FrontEndMetrics(registry)
    for reason in Refusal:
        assert registry.get_sample_value("convmlp_rejected_total", {"reason": reason}) == 0


@pytest.mark.parametrize("kind", DOMAIN_ERRORS)
def test_an_error_is_a_refusal_or_it_is_not(kind: type[ConvMLPError]) -> None:
    """An error that asks to retry later is one refusal; authentication counts its own errors; no other error counts."""
    registry = CollectorRegistry()
    FrontEndMetrics(registry).count_error(kind("words"))
    counted = sum(registry.get_sample_value("convmlp_rejected_total", {"reason": one}) or 0 for one in Refusal)
    by_authentication = kind in (RateLimited, Unauthenticated)
    later = issubclass(kind, RetryLater) or kind.code == "deadline-exceeded"
    assert counted == (1 if later and not by_authentication else 0)


@pytest.mark.parametrize("reason", [Refusal.QUEUE, Refusal.BODIES, Refusal.IN_FLIGHT])
def test_what_was_full_is_the_reason(reason: Refusal) -> None:
    """One error has several reasons; the count is under the bound that was met."""
    registry = CollectorRegistry()
    metrics = FrontEndMetrics(registry)
    metrics.count_error(Overloaded("full", 1.0, reason))
    metrics.count_error(ImageUndecodable("no image"))
    assert registry.get_sample_value("convmlp_rejected_total", {"reason": reason}) == 1


def test_the_best_batch_has_a_sample_while_its_model_is_served() -> None:
    """The best batch size has a sample once measured, and none after its model is removed."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, {"m": "detect"})
    assert registry.get_sample_value("convmlp_best_batch_size", {"model": "m"}) is None
    metrics.best_batch("m", 4)
    assert registry.get_sample_value("convmlp_best_batch_size", {"model": "m"}) == 4
    metrics.remove_model("m")
    assert registry.get_sample_value("convmlp_best_batch_size", {"model": "m"}) is None


def test_every_gauge_has_a_rule_for_several_processes() -> None:
    """Each gauge is in the table, and the table has no others."""
    registry = CollectorRegistry()
    FrontEndMetrics(registry)
    worker = CollectorRegistry()
    WorkerMetrics(worker, {})
    gauges = {one.name for each in (registry, worker) for one in each.collect() if one.type == "gauge"}
    assert gauges == GAUGE_MERGE.keys()
