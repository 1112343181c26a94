"""A plugin of pytest that measures processor time: `python -m pytest -p tests.cpu_report --cpu-report FILE`.

FILE is JSON: `tests` and `fixtures` map names to seconds of processor time, user and system, of this process and of the
processes that it waited for; `files` sums both by file. `forked` sums the processes of the fork server by command, with
their number. `other` is the time of imports, of collection and of the forked processes. `total` is everything, and
`system` the kernel's part of it. A new service of a whole session counts in the test after which it ended.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.fork_server import CPU_LOG

KEY = "cpu_report"

Seconds = defaultdict[str, float]
"""By name."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-report", type=Path, metavar="FILE", help="write the processor time of tests and fixtures")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--cpu-report"):
        config.pluginmanager.register(CpuReport(config), KEY)


def cpu_s() -> float:
    """Seconds of processor time of this process, and of the ended processes that it waited for."""
    return sum(os.times()[:4])


def largest_first(sums: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(sums.items(), key=lambda one: -one[1]))


class CpuReport:
    """Measures in each process that runs tests; the one that started them sums up, and writes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.tests: Seconds = defaultdict(float)
        self.fixtures: Seconds = defaultdict(float)
        self._of_fixtures = 0.0
        self._forked = tempfile.NamedTemporaryFile("r", prefix="convmlp-test-cpu-")  # noqa: SIM115
        if not hasattr(config, "workerinput"):
            os.environ[CPU_LOG] = self._forked.name

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        before, of_fixtures = cpu_s(), self._of_fixtures
        try:
            return (yield)
        finally:
            self.tests[item.nodeid] += cpu_s() - before - (self._of_fixtures - of_fixtures)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        before, of_fixtures = cpu_s(), self._of_fixtures
        try:
            return (yield)
        finally:
            own = cpu_s() - before - (self._of_fixtures - of_fixtures)
            self._of_fixtures += own
            self.fixtures[f"{fixturedef.baseid}::{fixturedef.argname}"] += own

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[KEY] = {"tests": dict(self.tests), "fixtures": dict(self.fixtures)}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object) -> None:
        part = getattr(node, "workeroutput", {}).get(KEY)
        if part:
            for sums, seconds in ((self.tests, part["tests"]), (self.fixtures, part["fixtures"])):
                for name, more in seconds.items():
                    sums[name] += more

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self, config: pytest.Config) -> None:
        if hasattr(config, "workeroutput"):
            return
        total = cpu_s()
        files: Seconds = defaultdict(float)
        for name, seconds in (*self.tests.items(), *self.fixtures.items()):
            files[name.partition("::")[0]] += seconds
        report = {
            "total": total,
            "system": sum(os.times()[1:4:2]),
            "other": total - sum(files.values()),
            "forked": self._by_command(),
            "files": largest_first(files),
            "fixtures": largest_first(self.fixtures),
            "tests": largest_first(self.tests),
        }
        config.getoption("--cpu-report").write_text(json.dumps(report, indent=1))

    def _by_command(self) -> dict[str, dict[str, float]]:
        """Seconds and number of the fork server's processes, by command; it has ended."""
        seconds, numbers = Seconds(float), Seconds(float)
        for line in self._forked:
            cpu, _, name = line.rstrip("\n").partition(" ")
            seconds[name] += float(cpu)
            numbers[name] += 1
        self._forked.close()
        return {name: {"seconds": total, "processes": numbers[name]} for name, total in largest_first(seconds).items()}
