"""A process with metrics and commands on stdin: `python -m tests.service.observability.metrics_process ROLE`.

A line is a JSON list: the name of a method of the role's metrics and its arguments; or `scrape`, which returns the
process's own metrics; or `scrape_all`, which returns those of all processes that share its folder, or
`scrape_openmetrics`, which returns the same as OpenMetrics.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from service.observability.exposition import ProcessMetrics, exposition, join_metrics, open_metrics
from service.observability.histograms import exemplar_of
from service.observability.logs import configure_logs
from service.observability.metrics import METRICS_DIR, FrontEndMetrics, WorkerMetrics
from tests.fork_server import STDERR, STDIN, STDOUT, ForkedProcess
from tests.waiting import PATIENCE_S


def main(role: str) -> None:
    answers = os.fdopen(os.dup(1), "w")  # standard output will be for the log
    configure_logs("warning", "console", role)
    join_metrics(role)
    registry = CollectorRegistry()
    metrics: Any = WorkerMetrics(registry, {}) if role.startswith("worker") else FrontEndMetrics(registry)
    with open_metrics(registry) as shared:
        _obey(metrics, shared, answers)


def _obey(metrics: Any, shared: ProcessMetrics, answers: TextIO) -> None:  # noqa: ANN401  (either role's)
    of_one, of_all = shared.of_one(), shared.of_all()
    answer: Any
    for line in sys.stdin:
        match json.loads(line):
            case ["scrape"]:
                answer = exposition(of_one)[0].decode()
            case ["scrape_all"]:
                answer = exposition(of_all)[0].decode()
            case ["scrape_openmetrics"]:
                answer = exposition(of_all, "application/openmetrics-text")[0].decode()
            case ["request", transport, task, model, outcome, seconds, *exemplar]:
                count, durations = metrics.requests[transport, task, model, outcome]
                count.inc(1, *exemplar)
                for duration in durations:
                    duration.add((seconds, exemplar_of(exemplar[0], seconds) if exemplar else None))
                answer = None
            case ["stage", stage, task, seconds]:
                answer = metrics.stages[stage, task].add((seconds, None))
            case ["queued", model, seconds]:
                answer = metrics.models[model].queue.add((seconds, None))
            case ["batch", model, images, seconds]:
                of_model = metrics.models[model]
                of_model.batch_size.add((images, None))
                for _ in range(images):
                    of_model.infer.add((seconds, None))
                of_model.images.inc(images)
                answer = of_model.busy.inc(seconds)
            case ["in_flight", images]:
                answer = metrics.in_flight.inc(images)
            case ["queue", images, pixels]:
                answer = metrics.watch_queue(lambda _, waiting=images: waiting, lambda waiting=pixels: waiting)
            case [method, *arguments, dict() as named]:
                answer = getattr(metrics, method)(*arguments, **named)
            case [method, *arguments]:
                answer = getattr(metrics, method)(*arguments)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class MetricsProcess:
    """The process, from outside."""

    def __init__(self, process: ForkedProcess, commands: TextIO, answers: TextIO) -> None:
        self._process, self._commands, self._answers = process, commands, answers
        self.pid = process.pid

    def do(self, method: str, *arguments: object) -> str:
        self._commands.write(json.dumps([method, *arguments]) + "\n")
        self._commands.flush()
        answer: str = json.loads(self._answers.readline())
        return answer

    def scrape(self) -> Scrape:
        """The process's own metrics. It then has shared them."""
        return Scrape(self.do("scrape"))

    def scrape_all(self) -> Scrape:
        """The metrics of all processes that share its folder."""
        return Scrape(self.do("scrape_all"))

    def end(self) -> None:
        """End it as a process of the service ends that is stopped."""
        self._commands.close()
        self._process.wait(timeout=30)

    def kill(self) -> None:
        self._process.kill()
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


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until what a process shares by itself has arrived."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@contextmanager
def metrics_process(role: str, folder: Path | None = None) -> Iterator[MetricsProcess]:
    """Start a process of this role, whose metrics are shared in `folder`; without a folder they are not."""
    environment = {name: value for name, value in os.environ.items() if name != METRICS_DIR}
    if folder is not None:
        environment[METRICS_DIR] = str(folder)
    (read, commands), (answers, written) = os.pipe(), os.pipe()
    with os.fdopen(answers) as answered, os.fdopen(commands, "w") as commanded:
        with os.fdopen(read, "rb") as stdin, os.fdopen(written, "wb") as stdout:
            files = {STDIN: stdin.fileno(), STDOUT: stdout.fileno(), STDERR: STDERR}
            process = ForkedProcess((role,), environment, files, module=__name__)
        try:
            yield MetricsProcess(process, commanded, answered)
        finally:
            process.kill()
            process.wait(timeout=30)


if __name__ == "__main__":
    main(sys.argv[1])
