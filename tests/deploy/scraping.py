"""A real Prometheus with the project's own configuration, of which only the targets and the pace are changed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import yaml

CONFIGURATION = Path(__file__).parents[2] / "docker/prometheus"
INTERVAL_S = 2.0
"""Also the time limit of a scrape, on a busy machine."""
START_TIMEOUT_S = 60.0

Series = dict[str, Any]
"""As Prometheus' HTTP API has it: `metric`, and `value` or `values`."""


@dataclass(frozen=True)
class Prometheus:
    """A client for a running one."""

    http: httpx2.Client

    def ask(self, path: str, **parameters: str | float) -> Any:  # noqa: ANN401  (any JSON of the API)
        """The data of the answer. AssertionError: Prometheus refuses the query."""
        answer = self.http.post(f"/api/v1/{path}", data=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]

    def instant(self, query: str) -> list[Series]:
        found: list[Series] = self.ask("query", query=query)["result"]
        return found

    def range(self, query: str, seconds: float) -> list[Series]:
        now = time.time()
        found: list[Series] = self.ask("query_range", query=query, start=now - seconds, end=now, step=1)["result"]
        return found

    def value(self, query: str) -> float:
        """The value of the one series that a query finds."""
        (series,) = self.instant(query)
        return float(series["value"][1])

    def until(self, query: str) -> list[Series]:
        """Wait for a query to find something."""
        until_s = time.monotonic() + START_TIMEOUT_S
        while not (found := self.instant(query)):
            assert time.monotonic() < until_s, f"nothing for {query}"
            time.sleep(INTERVAL_S / 4)
        return found

    def metrics(self) -> set[str]:
        """Names of all that was ever scraped or recorded."""
        return set(self.http.get("/api/v1/label/__name__/values").json()["data"])


@contextmanager
def running_prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """`targets`: HOST:PORT of each, by job; jobs of the configuration that have none here are left without."""
    folder.mkdir()
    config = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text())
    pace = f"{INTERVAL_S:.0f}s"
    config["global"] |= {"scrape_interval": pace, "scrape_timeout": pace, "evaluation_interval": pace}
    for job in config["scrape_configs"]:
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": list(targets.get(job["job_name"], ()))}]
    assert targets.keys() <= {job["job_name"] for job in config["scrape_configs"]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules").mkdir()
    for rules in (CONFIGURATION / "rules").glob("*.yml"):
        groups = yaml.safe_load(rules.read_text())["groups"]
        at_pace = [{key: value for key, value in group.items() if key != "interval"} for group in groups]
        (folder / "rules" / rules.name).write_text(yaml.safe_dump({"groups": at_pace}))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        port = _port_of(process, folder / "log")
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
            _wait_until_ready(http, process, folder / "log")
            yield Prometheus(http)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        finally:
            process.kill()


def _wait_until_ready(http: httpx2.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + START_TIMEOUT_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until_s, log.read_text()
        try:
            if http.get("/-/ready").is_success:
                return
        except httpx2.TransportError:
            time.sleep(0.1)


def _port_of(process: subprocess.Popen[bytes], log: Path) -> int:
    """Where it listens, by the system: Prometheus does not report its port."""
    until_s = time.monotonic() + START_TIMEOUT_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until_s, log.read_text()
        for connection in psutil.Process(process.pid).net_connections("tcp4"):
            if connection.status == psutil.CONN_LISTEN:
                return connection.laddr.port
        time.sleep(0.1)
