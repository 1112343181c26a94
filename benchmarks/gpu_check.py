"""`make gpu-check`: what a GPU host should be asked first, in one command and less than eight minutes.

Runs tests/gpu; compares the precisions on the device with fp32; measures the networks by batch, and the whole service
by number of clients. One report, as Markdown and as JSON, has it all. A part that fails or takes too long is in the
report as such, and the others go on; the exit status is then 1. `--device cpu --quick` takes the same steps on a host
without a GPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import torch

from benchmarks.device_throughput import BATCHES, Throughput
from tests.e2e.convmlp_process import running_service

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "gpu-check"
LIMITS_S = {"tests": 150.0, "parity": 120.0, "throughput": 120.0, "service": 75.0}
"""How long each part may take: together less than eight minutes."""
START_S = 45.0
"""Of the service's part, for its start."""
TOO_LONG = -1000
"""In the place of an exit status."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of each part is run."""

    variants: str
    pictures: int
    models: tuple[str, ...]
    sizes: str
    batches: str
    seconds: float
    clients: str
    load_s: float


FULL = Extent(
    "fp16,bf16,fp16+channels-last+folded,folded,channels-last", 32, (), "s,m,l", BATCHES, 2.0, "1,8,32,128", 5.0
)
QUICK = Extent("bf16", 2, ("convmlp_pets_breed",), "s", "1,2", 0.2, "1,2", 1.0)


class Part(msgspec.Struct):
    """A part of the report. `failure` is empty if it passed. `rows`: what it found."""

    name: str
    seconds: float = 0.0
    failure: str = ""
    rows: list[dict[str, Any]] = msgspec.field(default_factory=list)


class Report(msgspec.Struct):
    device: str
    machine: str
    software: str
    revision: str
    load_average: tuple[float, float, float]
    seconds: float = 0.0
    parts: list[Part] = msgspec.field(default_factory=list)


class PartFailed(Exception):
    """The message has the reason."""


@dataclass(frozen=True, slots=True)
class Check:
    """The parts, for a device."""

    device: torch.device
    extent: Extent
    work: Path
    environment: dict[str, str] = field(default_factory=lambda: {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})

    def tests(self) -> Iterator[dict[str, Any]]:
        """A row of the numbers, and one for each test that failed."""
        found = self.work / "tests.xml"
        done = self._run("tests", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={found}")
        if not found.exists():
            raise PartFailed(_last_line(done))
        suite = ElementTree.parse(found).getroot().find("testsuite")
        assert suite is not None
        counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        yield counts
        failed = [case for case in suite.iter("testcase") if {one.tag for one in case} & {"failure", "error"}]
        for case in failed:
            yield {"failed": f"{case.get('classname')}::{case.get('name')}"}
        if self.device.type == "cuda" and counts["skipped"] == counts["tests"]:
            raise PartFailed(f"no test ran; the log is {self.work / 'tests.out'}")
        if failed or done.returncode:
            raise PartFailed(f"{len(failed)} of {counts['tests']} tests failed; the log is {self.work / 'tests.out'}")

    def parity(self) -> Iterator[dict[str, Any]]:
        """A row for each model and variant."""
        extent = self.extent
        named = [part for model in extent.models for part in ("--model", model)]
        options = ["--json", f"--device={self.device}", f"--variants={extent.variants}", f"--count={extent.pictures}"]
        done = self._run("parity", "benchmarks.parity", *options, *named)
        if done.returncode:
            raise PartFailed(_last_line(done))
        for row in msgspec.json.decode(done.stdout)["rows"]:
            yield {name: value for name, value in row.items() if value is not None}

    def throughput(self) -> Iterator[dict[str, Any]]:
        """A row for each model and batch; those that were measured in time, if not all were."""
        extent = self.extent
        options = [f"--sizes={extent.sizes}", f"--batches={extent.batches}", f"--seconds={extent.seconds}"]
        done = self._run(
            "throughput", "benchmarks.device_throughput", f"--device={self.device}", *options, partial=True
        )
        for line in done.stdout.splitlines():
            yield msgspec.to_builtins(msgspec.json.decode(line, type=Throughput))
        if done.returncode:
            raise PartFailed(_last_line(done))

    def service(self) -> Iterator[dict[str, Any]]:
        """A row for each number of clients, of the embedded classifier."""
        extent = self.extent
        with running_service("--device", str(self.device)) as service:
            options = ["--url", service.url, "--concurrency", extent.clients, "--seconds", str(extent.load_s), "--json"]
            done = self._run("service", "service.cli", "bench", *options, "--warm-up", "1")
        if done.returncode:
            raise PartFailed(_last_line(done))
        for row in msgspec.json.decode(done.stdout)["measured"]:
            yield {
                "clients": row["concurrency"],
                "images_per_s": round(row["answers_per_second"], 1),
                **{f"{name}_ms": row["latency_ms"][name] for name in ("p50", "p99")},
                "errors": sum(row["refused"].values()) + sum(row["failed"].values()),
            }

    def _run(self, part: str, module: str, *arguments: str, partial: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a module within the limit of its part; `partial`: what it wrote until then counts.

        Raises:
            PartFailed: it took longer.
        """
        limit_s = LIMITS_S[part] - (START_S if part == "service" else 0.0)
        out, log = self.work / f"{part}.out", self.work / f"{part}.log"
        command = [sys.executable, "-m", module, *arguments]
        with (
            out.open("w") as stdout,
            log.open("w") as stderr,
            subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=stdout, stderr=stderr) as process,
        ):
            try:
                status = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                process.kill()
                if not partial:
                    raise PartFailed(f"it took longer than {limit_s:.0f} s; its log is {log}") from None
                status = TOO_LONG
        error = f"it took longer than {limit_s:.0f} s" if status == TOO_LONG else log.read_text(errors="replace")
        return subprocess.CompletedProcess(command, status, out.read_text(errors="replace"), error)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"it ended with the status {done.returncode}"


def run_part(name: str, rows: Callable[[], Iterator[dict[str, Any]]]) -> Part:
    """A part, whatever becomes of it."""
    part, started_s = Part(name), time.monotonic()
    try:
        for row in rows():
            part.rows.append(row)
    except Exception as error:  # of any kind: the other parts go on
        part.failure = str(error) or type(error).__name__
    part.seconds = round(time.monotonic() - started_s, 1)
    return part


def name_of(device: torch.device) -> str:
    if device.type != "cuda":
        return f"CPU, {torch.get_num_threads()} threads"
    about = torch.cuda.get_device_properties(device)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, compute capability {about.major}.{about.minor}"


def processor() -> str:
    about = Path("/proc/cpuinfo")
    for line in about.read_text(encoding="utf-8").splitlines() if about.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def revision() -> str:
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def as_markdown(report: Report) -> str:
    """The report for readers."""
    failed = [part.name for part in report.parts if part.failure]
    lines = [
        f"# {report.device}",
        "",
        f"{'Failed: ' + ', '.join(failed) if failed else 'All parts passed'}, in {report.seconds:.0f} s.",
        f"{report.machine}; {report.software}; revision {report.revision}; load average before: "
        + ", ".join(f"{one:.1f}" for one in report.load_average),
    ]
    for part in report.parts:
        lines += ["", f"## {part.name}, {part.seconds:.0f} s", ""]
        lines += [f"Failed: {part.failure}", ""] if part.failure else []
        lines += _table(part.rows)
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of the same columns share a table."""
    lines: list[str] = []
    columns: list[str] = list(dict.fromkeys(name for row in rows for name in row))
    if rows:
        lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows:
        cells = (_cell(row.get(name, "")) for name in columns)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(value: object) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", type=torch.device, default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="a little of each part: does everything run?")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of report.md and report.json")
    arguments = parser.parse_args()
    device: torch.device = arguments.device
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.exit(
            1, "make gpu-check: torch finds no GPU here; --device cpu --quick takes the same steps without one\n"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    software = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, Python {platform.python_version()}"
    machine = f"{processor()}, {os.cpu_count()} cores"
    report = Report(name_of(device), machine, software, revision(), os.getloadavg())
    check = Check(device, QUICK if arguments.quick else FULL, arguments.out.absolute())
    parts = {"tests": check.tests, "parity": check.parity, "throughput": check.throughput, "service": check.service}
    for name, rows in parts.items():
        part = run_part(name, rows)
        print(f"{name}: {part.failure or 'passed'}, {part.seconds:.0f} s", file=sys.stderr, flush=True)
        report.parts.append(part)
    report.seconds = round(time.monotonic() - started_s, 1)
    (arguments.out / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    text = as_markdown(report)
    (arguments.out / "report.md").write_text(text, encoding="utf-8")
    print(text, end="")
    sys.exit(any(part.failure for part in report.parts))


if __name__ == "__main__":
    main()
