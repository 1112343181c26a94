"""Runs as they would have been measured."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.limit import DecodingAlone, Limit, NetworkAlone
from benchmarks.network import Kind
from benchmarks.results import Load, Run, Visit
from benchmarks.servers import EMBEDDED_MODELS, LARGE_MODELS, Arrangement

MODEL = "convmlp_bench_s"


def load(answers: float, level: float = 32, loop: str = "closed", **more: object) -> Load:
    given = {
        "task": "classify",
        "loop": loop,
        "level": level,
        "offered": None,
        "seconds": 4.0,
        "answers": answers,
        "good": answers,
        "p50": 10.0,
        "p95": 20.0,
        "p99": 30.0,
        "requests": 100,
        "refused": {},
        "failed": {},
        "unsent": 0,
        "server_cpu": 12.0,
        "client_cpu": 0.1,
        "resident_mib": 500.0,
        "foreign_cores": 0.0,
    }
    return Load(**{**given, **more})  # type: ignore[arg-type]


def limit(network: float, decoding: float) -> Limit:
    models = (MODEL, *EMBEDDED_MODELS.values(), *LARGE_MODELS.values())
    networks = [
        NetworkAlone(model, kind, {"1 x 1": network / 2, "2 x 4": network}, 8.0) for model in models for kind in Kind
    ]
    return Limit(networks, [DecodingAlone(model, decoding, 2.0) for model in models])


@dataclass
class Measured:
    """A run of so many rounds, to which visits are added."""

    run: Run

    def add(
        self, number: int, server: str, network: str, *loads: Load, arrangement: Arrangement = Arrangement.TUNED
    ) -> None:
        self.run.visits.append(Visit(number, server, network, 1, arrangement, 3.0, list(loads), 480.0))
