"""p99 at 80 % of the capacity: a real service under load, the ten slowest answers, and other policies in a simulation.

One client at a time; 32 clients, whose rate is the capacity; then requests that arrive at random (Poisson) at 80 % and
at 120 % of it. `classify`: ConvMLP-S alone; `mixture`: the embedded classifier, detector and segmenter, equally often;
`long`: ConvMLP-S, and for every tenth of its requests a detection by RetinaNet in the size of the paper. The simulation
takes the measured times of batches and of a request's other work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks.material import MODEL, make_material
from benchmarks.processes import adopt_orphans
from benchmarks.run import within
from benchmarks.servers import LARGE_MODELS, REPOSITORY
from benchmarks.tail.compare import compare, lines
from benchmarks.tail.curves import Times
from benchmarks.tail.measure import DEADLINE_MS, Load, Service, apply_load, running
from benchmarks.tail.overload import SPREADS, overload, overload_lines
from benchmarks.tail.report import disturbance_lines, load_line, stage_lines, stories, worst_lines
from benchmarks.tail.simulation import Curve
from service.settings import usable_cores


class Requested(NamedTuple):
    """`share`: how many requests a model gets, in proportion to the others'."""

    task: str
    share: float


EMBEDDED = {"classify": "convmlp_pets_breed", "detect": "convmlp_pets_heads", "segment": "convmlp_pets_outline"}
WORKLOADS: Mapping[str, Mapping[str, Requested]] = {
    "classify": {MODEL: Requested("classify", 1.0)},
    "mixture": {model: Requested(task, 1.0) for task, model in EMBEDDED.items()},
    "long": {MODEL: Requested("classify", 10.0), LARGE_MODELS["detect"]: Requested("detect", 1.0)},
}
"""By model."""
DEFAULT = "classify,mixture"
SHARE, OVERLOAD = 0.8, 1.2
CLOSED_PART = 0.25
"""Of the seconds of the main load, for each of the others."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tail", description=__doc__)
    parser.add_argument("--seconds", type=within(float, 1.0, 120.0), default=16.0, help="of the load at 80 %%")
    parser.add_argument("--workloads", default=DEFAULT, help="of classify, mixture and long")
    parser.add_argument("--cpu-ms", type=within(float, 0.0, 100.0), help="simulate alone, with so much CPU a request")
    parser.add_argument("--save", type=Path, help="a file for the measured times of batches")
    parser.add_argument("--times", type=Path, help="such a file: do not measure them again")
    arguments = parser.parse_args()
    names = arguments.workloads.split(",")
    if unknown := set(names) - set(WORKLOADS):
        parser.error(f"unknown workloads: {', '.join(sorted(unknown))}; known: {', '.join(WORKLOADS)}")
    adopt_orphans()
    material = make_material(REPOSITORY / ".bench" / "material", None)
    if "long" in names:
        from benchmarks.large import make_large

        make_large(material)
    models = list(dict.fromkeys(model for name in names for model in WORKLOADS[name]))
    precision = material.fastest_precision()
    times = read_times(arguments.times) if arguments.times else measure_times(material.models_dir, models, precision)
    if arguments.save:
        arguments.save.write_bytes(msgspec.json.encode(times))
    print(f"{usable_cores()} cores, load average {os.getloadavg()[0]:.1f}, precision {precision}")
    cpu_ms = dict.fromkeys(names, arguments.cpu_ms)
    if arguments.cpu_ms is None:
        cpu_ms = measure(models, material.models_dir, material.pictures(), names, arguments.seconds)
    for name in names:
        print(f"\n## {name}: policies\n")
        curves = {
            model: Curve(times[model].seconds, times[model].lone_s, cpu_ms[name] / 1000) for model in WORKLOADS[name]
        }
        shares, cores = shares_of(name), usable_cores()
        print("\n".join(lines(compare(curves, cores, SHARE, shares))), flush=True)
        rows = [overload(curves, cores, shares, OVERLOAD, DEADLINE_MS / 1000, spread) for spread in SPREADS]
        print("\n" + "\n".join(overload_lines(rows, OVERLOAD, DEADLINE_MS / 1000)), flush=True)


def shares_of(workload: str) -> dict[str, float]:
    """By model."""
    return {model: requested.share for model, requested in WORKLOADS[workload].items()}


def measure_times(models_dir: Path, models: Sequence[str], precision: str) -> dict[str, Times]:
    """Of batches, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.tail.curves", str(models_dir)]
    pairs = [f"{model}={precision}" for model in models]
    done = subprocess.run([*command, *pairs], stdout=subprocess.PIPE, check=True, cwd=REPOSITORY)
    return msgspec.json.decode(done.stdout, type=dict[str, Times])


def read_times(file: Path) -> dict[str, Times]:
    return msgspec.json.decode(file.read_bytes(), type=dict[str, Times])


def measure(
    models: Sequence[str], models_dir: Path, pictures: Sequence[bytes], names: Sequence[str], seconds: float
) -> dict[str, float]:
    """Measure the real service, and print it. Returns the CPU ms of a request outside its batch, by workload."""
    loads: dict[str, dict[str, Load]] = {}
    with running(models, models_dir) as service:
        for name in names:
            loads[name] = _loads(service, name, pictures, seconds)
    for name, by_load in loads.items():
        print(f"\n## {name}: measured\n")
        for load_name, load in by_load.items():
            print(load_line(load_name, load))
        lone, main, over = by_load["one client"], by_load["80 %"], by_load["120 %"]
        found = stories(main.answers, service.records)
        print(
            f"\np99 at 80 % over that of a lone request: {main.percentile_ms(99) / lone.percentile_ms(99):.2f}; "
            f"at 120 % answers within {DEADLINE_MS} ms over the capacity: "
            f"{over.good_per_second / by_load['32 clients'].per_second:.2f}, refused "
            f"{over.statuses.get(503, 0) / max(1, sum(over.statuses.values())):.2f} of the requests"
        )
        if len(WORKLOADS[name]) > 1:
            for model in WORKLOADS[name]:
                print(
                    f"{model}: p99 {main.percentile_ms(99, model):.1f} ms, of a lone request "
                    f"{lone.percentile_ms(99, model):.1f} ms"
                )
        if found:
            print("\n" + "\n".join([*stage_lines(found), "", *disturbance_lines(service.records, main)]))
            print("\nThe slowest answers, ms:\n\n" + "\n".join(worst_lines(found, main.began_s)), flush=True)
    return {name: by_load["32 clients"].cpu_ms for name, by_load in loads.items()}


def _loads(service: Service, workload: str, pictures: Sequence[bytes], seconds: float) -> dict[str, Load]:
    requests = {
        model: [(f"/{requested.task}?model={model}", picture) for picture in pictures]
        for model, requested in WORKLOADS[workload].items()
    }
    shares = shares_of(workload)
    short_s = CLOSED_PART * seconds
    closed = {
        "one client": apply_load(service, requests, shares, short_s, clients=1),
        "32 clients": apply_load(service, requests, shares, short_s, clients=32),
    }
    rate = closed["32 clients"].per_second
    time.sleep(1.0)
    return {
        **closed,
        "80 %": apply_load(service, requests, shares, seconds, rate=SHARE * rate),
        "120 %": apply_load(service, requests, shares, short_s, rate=OVERLOAD * rate, timeout_ms=DEADLINE_MS),
    }


if __name__ == "__main__":
    main()
