"""A process with metrics and commands on stdin: `python -m tests.service.observability.metrics_process ROLE`.

A line is a JSON list: the name of a method of the role's metrics and its arguments; or `scrape`, which returns the
process's own metrics; or `scrape_all`, which returns those of all processes that share its folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from service.observability.exposition import exposition, join_metrics, registry_of_all, registry_of_one
from service.observability.logs import configure_logs
from service.observability.metrics import MULTIPROC_DIR, FrontEndMetrics, WorkerMetrics


def main(role: str) -> None:
    configure_logs("warning", "console", role)
    join_metrics(role)
    registry = CollectorRegistry()
    metrics: Any = WorkerMetrics(registry, {}) if role.startswith("worker") else FrontEndMetrics(registry)
    of_one, of_all = registry_of_one(registry), registry_of_all(registry)
    for line in sys.stdin:
        match json.loads(line):
            case ["scrape"]:
                answer = exposition(of_one)[0].decode()
            case ["scrape_all"]:
                answer = exposition(of_all)[0].decode()
            case ["request", transport, task, model, outcome, seconds]:
                count, duration = metrics.requests[transport, task, model, outcome]
                count.inc()
                answer = duration.observe(seconds)
            case ["stage", stage, task, seconds]:
                answer = metrics.stages[stage, task].observe(seconds)
            case ["in_flight", images]:
                answer = metrics.in_flight.inc(images)
            case [method, *arguments, dict() as named]:
                answer = getattr(metrics, method)(*arguments, **named)
            case [method, *arguments]:
                answer = getattr(metrics, method)(*arguments)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class MetricsProcess:
    """The process, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def do(self, method: str, *arguments: object) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([method, *arguments]) + "\n")
        self._process.stdin.flush()
        answer: str = json.loads(self._process.stdout.readline())
        return answer

    def scrape(self) -> Scrape:
        """The process's own metrics."""
        return Scrape(self.do("scrape"))

    def scrape_all(self) -> Scrape:
        """The metrics of all processes that share its folder."""
        return Scrape(self.do("scrape_all"))

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=30)


class Scrape:
    """The answer to a scrape, parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families: dict[str, Metric] = {one.name: one for one in text_string_to_metric_families(text)}

    def __call__(self, name: str, /, **labels: str) -> float | None:
        """The value of the one sample of this name with these labels and no others; None where there is none."""
        samples = [one for family in self.families.values() for one in family.samples if one.name == name]
        found = [one.value for one in samples if one.labels == labels]
        assert len(found) <= 1, f"two samples: {name} {labels}"
        return found[0] if found else None

    def values(self, name: str, label: str) -> set[str]:
        """The values of a label of a metric."""
        samples = (one for family in self.families.values() for one in family.samples if one.name == name)
        return {one.labels[label] for one in samples}


@contextmanager
def metrics_process(role: str, folder: Path | None = None) -> Iterator[MetricsProcess]:
    """Start a process of this role, whose metrics files are in `folder`; without a folder it has none."""
    environment = {name: value for name, value in os.environ.items() if name != MULTIPROC_DIR}
    if folder is not None:
        environment[MULTIPROC_DIR] = str(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.service.observability.metrics_process", role],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield MetricsProcess(process)
    finally:
        process.kill()
        process.communicate(timeout=30)


if __name__ == "__main__":
    main(sys.argv[1])
