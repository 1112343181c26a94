"""Histograms that gather their values and count them in groups."""

from __future__ import annotations

import random
import threading

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from service.observability.histograms import Histogram, exemplar_of
from service.observability.metrics import FrontEndMetrics

BUCKETS = (0.001, 0.5, 1.0, 30.0)


def test_the_exposition_is_that_of_the_library() -> None:
    """What is written out does not differ from prometheus_client's own histogram: bounds, sums, labels and order."""
    values = [*BUCKETS, 0.0, 31.0, *(random.Random(5).expovariate(1.0) for _ in range(500))]
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    reference = prometheus_client.Histogram("a_seconds", "Time", ["stage"], registry=theirs, buckets=BUCKETS)
    histogram = Histogram("a_seconds", "Time", ["stage"], registry=ours, buckets=BUCKETS)
    for registry in (theirs, ours):
        prometheus_client.Counter("b", "Others", registry=registry)
    prometheus_client.disable_created_metrics()
    for stage in ("queue", "infer"):
        for value in values:
            reference.labels(stage).observe(value)
            histogram.labels(stage).add((value, None))
    assert prometheus_client.generate_latest(ours) == prometheus_client.generate_latest(theirs)
    assert prometheus_client.generate_latest(ours).count(b"a_seconds_bucket") == 2 * (len(BUCKETS) + 1)


def test_a_name_belongs_to_one_metric() -> None:
    """The registry refuses a second metric of the name, as it does for the library's own."""
    registry = CollectorRegistry()
    Histogram("a_seconds", "Time", [], registry=registry, buckets=BUCKETS)
    with pytest.raises(ValueError, match="Duplicated"):
        prometheus_client.Histogram("a_seconds", "Time", registry=registry)


def test_a_bucket_has_the_exemplar_of_its_latest_trace() -> None:
    """Only values of traced requests give exemplars."""
    registry = CollectorRegistry()
    child = Histogram("a_seconds", "Time", [], registry=registry, buckets=BUCKETS).labels()
    child.add((0.7, exemplar_of({"trace_id": "1"}, 0.7)))
    child.add((0.8, exemplar_of({"trace_id": "2"}, 0.8)))
    child.add((0.9, None))
    text = generate_latest(registry).decode()
    assert 'a_seconds_bucket{le="1.0"} 3.0 # {trace_id="2"} 0.8' in text
    assert 'trace_id="1"' not in text


def test_values_of_many_threads_are_counted_once() -> None:
    """Threads add while others read: in the end each value has been counted once."""
    registry = CollectorRegistry()
    histogram = Histogram("a_seconds", "Time", [], registry=registry, buckets=BUCKETS)
    child = histogram.labels()
    added = threading.Event()

    def add() -> None:
        for _ in range(20_000):
            child.add((0.25, None))

    def read() -> None:
        while not added.is_set():
            histogram.count()

    adding = [threading.Thread(target=add) for _ in range(3)]
    reading = [threading.Thread(target=read) for _ in range(2)]
    for thread in (*adding, *reading):
        thread.start()
    for thread in adding:
        thread.join()
    added.set()
    for thread in reading:
        thread.join()
    assert registry.get_sample_value("a_seconds_count") == 60_000
    assert registry.get_sample_value("a_seconds_sum") == 15_000


def test_values_are_counted_though_nobody_reads_metrics() -> None:
    """The look at the event loop, about once a second, counts what was gathered: it does not pile up."""
    metrics = FrontEndMetrics(CollectorRegistry())
    stage = metrics.stages["decode", "classify"]
    stage.add((0.002, None))
    assert sum(stage.counts) == 0
    metrics.event_loop_lag(0.0)
    assert sum(stage.counts) == 1
