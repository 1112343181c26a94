"""The comparisons of this service with its peers, the limit, and itself, and their goals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from benchmarks.figures import BENCH_MODEL, LARGE_LEVEL, MAIN_LEVEL, Spread, best_peer, ratio, share_of_limit
from benchmarks.network import Kind
from benchmarks.peers.classifier import NOOP
from benchmarks.results import Load, Run
from benchmarks.servers import EMBEDDED_MODELS, LARGE, LARGE_MODELS, OURS, Arrangement, Who

LATE = "deadline-exceeded"
NOOP_LEVEL = 8


def comparisons(run: Run) -> Iterator[tuple[str, Spread, str]]:
    """Each comparison: its name, its value, its goal."""
    fastest = str(Kind.FASTEST)
    main = Who(OURS, fastest)
    ours = run.of(main)
    yield f"share of the limit at {MAIN_LEVEL} clients", share_of_limit(run, main), "≥ 0.90"
    for network, mine, goal in (
        (Kind.EAGER, Kind.FASTEST, "≥ 3"),
        (Kind.FASTEST, Kind.FASTEST, "≥ 1.3"),
        (Kind.FP32, Kind.FP32, "≥ 1.5"),
        (Kind.EAGER, Kind.FP32, ""),
    ):
        if best := best_peer(run, network):
            name = f"{mine}, over the best peer with {network} ({best.server}, {best.arrangement})"
            yield name, ratio(run, Who(OURS, mine), best), goal
    for network in (Kind.EAGER, Kind.FASTEST):
        if best := best_peer(run, network, [Arrangement.AS_ADVISED]):
            name = f"{fastest}, over the best {Arrangement.AS_ADVISED} peer with {network} ({best.server})"
            yield name, ratio(run, main, best), ""
    lone = [(one.load("classify", "closed", 1), run.limits[one.round]) for one in ours]
    excess = [load.p50 - 1.15 * limit.lone_ms(BENCH_MODEL, fastest) for load, limit in lone if load and load.p50]
    yield "p50 of a lone request, beyond 1.15 x (decoding + network alone), ms", Spread(tuple(excess)), "≤ 2"
    for base in ("p50", "p99"):
        steady = [(one.load("classify", "open", 0.8), one.load("classify", "closed", 1)) for one in ours]
        waits = [a.p99 / getattr(b, base) for a, b in steady if a and b and a.p99 and getattr(b, base)]
        yield f"p99 of an open loop at 80 % of the capacity, over a lone request's {base}", Spread(tuple(waits)), "≤ 4"
    over = [(one.load("classify", "open", 1.2), one) for one in ours]
    goodput = [load.good / _capacity(one.loads) for load, one in over if load]
    name = f"open loop at 120 %: answers within {run.deadline_ms:.0f} ms, over the capacity"
    yield name, Spread(tuple(goodput)), "≥ 0.95"
    refused = [sum(load.refused.values()) / load.requests for load, _ in over if load and load.requests]
    yield "open loop at 120 %: refused at once, share of the requests", Spread(tuple(refused)), ""
    late = [load.failed.get(LATE, 0) / load.requests for load, _ in over if load and load.requests]
    yield "open loop at 120 %: admitted but late, share of the requests", Spread(tuple(late)), "0"
    crowd = [(one.load("classify", "closed", 128), one.load("classify", "closed", MAIN_LEVEL)) for one in ours]
    kept = [a.answers / b.answers for a, b in crowd if a and b and b.answers]
    yield f"rate at 128 clients, over that at {MAIN_LEVEL}", Spread(tuple(kept)), "≥ 0.97"
    memory = [a.resident_mib / b.resident_mib for a, b in crowd if a and b]
    yield f"memory after 128 clients, over that after {MAIN_LEVEL}", Spread(tuple(memory)), "about 1"
    yield from _tasks(run, Who(OURS, LARGE), LARGE_MODELS, LARGE_LEVEL, "≥ 0.90")
    yield from _tasks(run, main, EMBEDDED_MODELS, MAIN_LEVEL, "")
    for name, goal in (("fastapi", "≥ 0.80"), ("litserve", "≥ 4")):
        over_it = ratio(run, Who(OURS, NOOP), Who(name, NOOP), NOOP_LEVEL)
        yield f"no-op at {NOOP_LEVEL} clients, over {name}", over_it, goal
    more = ratio(run, Who(OURS, NOOP, 2), Who(OURS, NOOP), NOOP_LEVEL)
    yield f"no-op at {NOOP_LEVEL} clients, two front-end processes over one", more, "> 1"


def _tasks(run: Run, who: Who, models: Mapping[str, str], level: float, goal: str) -> Iterator[tuple[str, Spread, str]]:
    """Detection and segmentation, over their networks alone and over networks with decoding."""
    for task, model in models.items():
        pairs = [(one.load(task, "closed", level), run.limits[one.round]) for one in run.of(who)]
        name = f"{task} ({model})"
        shares = [load.answers / limit.network(model, Kind.FASTEST).best_per_second for load, limit in pairs if load]
        yield f"{name}, over the rate of its network alone", Spread(tuple(shares)), goal
        shares = [load.answers / limit.per_second(model, Kind.FASTEST) for load, limit in pairs if load]
        yield f"{name}, share of the limit (network and decoding on the same cores)", Spread(tuple(shares)), ""


def _capacity(loads: Iterable[Load]) -> float:
    return max(load.answers for load in loads if (load.task, load.loop) == ("classify", "closed"))
