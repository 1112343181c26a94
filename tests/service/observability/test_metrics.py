"""What is counted, and under which names and labels."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from model.errors import ConvMLPError, ImageUndecodable
from service.errors import DOMAIN_ERRORS, Overloaded, RateLimited, Refusal, RetryLater, Unauthenticated
from service.observability.metrics import FrontEndMetrics, WorkerMetrics
from tests.service.observability.metrics_process import telling

FRONT_END = {
    "convmlp_requests_total": {"transport", "task", "model", "outcome"},
    "convmlp_request_duration_seconds_count": {"transport", "task"},
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
    """A front-end tells every metric of its own by the fixed name, with the fixed labels."""
    with telling("rest") as rest:
        rest.do("request", "rest", "classify", "m", "ok", 0.01)
        rest.do("stage", "decode", "classify", 0.01)
        told = rest.scrape()
    for name, labels in FRONT_END.items():
        samples = [one for family in told.families.values() for one in family.samples if one.name == name]
        assert samples, name
        assert all(set(one.labels) == labels for one in samples), name


def test_a_workers_names_are_the_contracts() -> None:
    """A worker tells every metric of its own by the fixed name, with the fixed labels; without a GPU none of a GPU."""
    with telling("worker") as worker:
        worker.do("add_model", "m", "classify")
        worker.do("waited", "m", 0.01)
        worker.do("batch", "m", 1, 0.01)
        told = worker.scrape()
    for name, labels in WORKER.items():
        samples = [one for family in told.families.values() for one in family.samples if one.name == name]
        assert samples, name
        assert all(set(one.labels) == labels for one in samples), name
    assert "gpu" not in told.text


def test_all_reasons_are_told_from_the_start() -> None:
    """A refusal that never happened is 0 and not missing: the first one is a rise, which a rate sees."""
    registry = CollectorRegistry()
    FrontEndMetrics(registry)
    for reason in Refusal:
        assert registry.get_sample_value("convmlp_rejected_total", {"reason": reason}) == 0


@pytest.mark.parametrize("kind", DOMAIN_ERRORS)
def test_an_error_is_a_refusal_or_it_is_not(kind: type[ConvMLPError]) -> None:
    """Those that say "not now" are counted, once, but for the gate's own, which it counts itself; no other is."""
    registry = CollectorRegistry()
    FrontEndMetrics(registry).count_error(kind("words"))
    counted = sum(registry.get_sample_value("convmlp_rejected_total", {"reason": one}) or 0 for one in Refusal)
    by_the_gate = kind in (RateLimited, Unauthenticated)
    later = issubclass(kind, RetryLater) or kind.code == "deadline-exceeded"
    assert counted == (1 if later and not by_the_gate else 0)


@pytest.mark.parametrize("reason", [Refusal.QUEUE, Refusal.BODIES, Refusal.IN_FLIGHT])
def test_what_was_full_is_the_reason(reason: Refusal) -> None:
    """One error, whose reason says which bound was met."""
    registry = CollectorRegistry()
    metrics = FrontEndMetrics(registry)
    metrics.count_error(Overloaded("full", 1.0, reason))
    metrics.count_error(ImageUndecodable("no image"))
    assert registry.get_sample_value("convmlp_rejected_total", {"reason": reason}) == 1


def test_every_image_of_a_batch_is_inferred_for_as_long_as_the_batch() -> None:
    """Stages are an image's; what the device was busy is counted once."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, {"m": "detect"})
    metrics.batch("m", 4, 0.25)
    infer = {"stage": "infer", "task": "detect"}
    assert registry.get_sample_value("convmlp_stage_duration_seconds_count", infer) == 4
    assert registry.get_sample_value("convmlp_stage_duration_seconds_sum", infer) == 1.0
    assert registry.get_sample_value("convmlp_device_busy_seconds_total", {"model": "m"}) == 0.25
    assert registry.get_sample_value("convmlp_batch_size_bucket", {"model": "m", "le": "4.0"}) == 1
    assert registry.get_sample_value("convmlp_batch_size_bucket", {"model": "m", "le": "3.0"}) == 0


def test_a_batch_on_a_part_of_the_device_keeps_that_part_busy() -> None:
    """Two batches next to each other for a second, each on half of the device, are one second of it."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, {"m": "detect"})
    for _ in range(2):
        metrics.batch("m", 4, 1.0, 0.5)
    assert registry.get_sample_value("convmlp_device_busy_seconds_total", {"model": "m"}) == 1.0
    assert registry.get_sample_value("convmlp_stage_duration_seconds_sum", {"stage": "infer", "task": "detect"}) == 8.0


def test_the_best_batch_is_told_while_a_model_is_served() -> None:
    """Its size is there once it was measured, and goes with the model."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, {"m": "detect"})
    assert registry.get_sample_value("convmlp_best_batch_size", {"model": "m"}) is None
    metrics.best_batch("m", 4)
    assert registry.get_sample_value("convmlp_best_batch_size", {"model": "m"}) == 4
    metrics.remove_model("m")
    assert registry.get_sample_value("convmlp_best_batch_size", {"model": "m"}) is None
