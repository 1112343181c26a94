"""A run's results as tables and plots: docs/performance.md between its markers. `python -m benchmarks.report` writes
them again from docs/performance.json without measuring anything.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.figures import LARGE_LEVEL, MAIN_LEVEL, NETWORKS, Spread, rate, share_of_limit, spread
from benchmarks.goals import LATE, comparisons
from benchmarks.network import Kind
from benchmarks.peers.classifier import NOOP
from benchmarks.results import Run, Visit, read_run
from benchmarks.servers import EMBEDDED_MODELS, LARGE, LARGE_MODELS, OURS, REPOSITORY, Who
from service.frontend.core.request_log import STAGES

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write_report(run: Run, out: Path) -> str:
    """Write the part of `out`/performance.md between its markers, and the plots beside it.

    Returns:
        The part.
    """
    from benchmarks.plots import write_plots

    part = report(run)
    page = out / "performance.md"
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    page.write_text(merged(text, part), encoding="utf-8")
    write_plots(run, out)
    return part


def merged(page: str, part: str) -> str:
    """The page with `part` between its markers; an empty page consists of that part.

    Raises:
        ValueError: the page is not empty and has no markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if page and not (begin and end):
        raise ValueError(f"the page lacks the markers {BEGIN} and {END}, between which the results go")
    return f"{before}{BEGIN}\n{part}\n{END}{after if page else chr(10)}"


def report(run: Run) -> str:
    sections = [_machine(run), _table(run), _goals(run), _tasks(run), _stages(run), _noop(run), _networks(run)]
    return "\n\n".join(filter(None, sections))


def _machine(run: Run) -> str:
    machine, plan, rounds = run.machine, run.plan, len({one.round for one in run.visits})
    foreign = max((load.foreign_cores for one in run.visits for load in one.loads), default=0.0)
    lines = [
        f"Measured {run.started[:10]} on {machine.cores} cores of {machine.processor}, {machine.memory_gib:g} GiB, "
        f"{machine.system}, Python {machine.python}, torch {machine.torch}; {rounds} interleaved rounds, "
        f"{plan.seconds:g} s a measurement; pictures of {run.picture_bytes / 1000:.0f} KB on average. Client and "
        f"server share the cores. Each figure is the median over the rounds, minimum and maximum in brackets; one "
        f"without brackets was measured once.",
    ]
    if foreign > DISTURBED_CORES:
        lines.append(f"Others used up to {foreign:.1f} cores meanwhile: absolute figures are lower than they could be.")
    for name, reason in run.unavailable.items():
        lines.append(f"{name} is missing: {reason}")
    for one in run.visits:
        where = f"{one.who}, round {one.round + 1}"
        if one.trouble:
            lines.append(f"{where}: {one.trouble}")
        if failures := _failures(one):
            lines.append(f"{where}, failures: {', '.join(f'{times} x {kind}' for kind, times in failures.items())}")
    return "\n\n".join(lines)


DISTURBED_CORES = 0.15


def _failures(visit: Visit) -> Counter[str]:
    """All failures except answers of an overloaded open loop that the service itself refused as late."""
    failures: Counter[str] = Counter()
    for load in visit.loads:
        failures.update({kind: times for kind, times in load.failed.items() if (load.loop, kind) != ("open", LATE)})
    return failures


def _table(run: Run) -> str:
    levels = run.plan.levels
    rows = [list(_row(run, who)) for who in _ranked(run)]
    if not rows:
        return ""
    heads = ["server", "network", "arrangement", *(f"{level} clients" for level in levels)]
    heads += ["p50 ms", "p95 ms", "p99 ms", "of the limit", "CPU ms", "MiB"]
    text = (
        f"Answers a second by the number of clients of a closed loop. At {MAIN_LEVEL} clients: latencies, share of the "
        "limit (network alone plus decoding alone, on the same cores), and the server's CPU time an answer. Memory of "
        "all the server's processes at the end."
    )
    plots = "![Answers a second over clients](throughput.svg)\n\n![Latencies](latency.svg)"
    return f"### Classification, ConvMLP-S at 224\n\n{text}\n\n{_grid(heads, rows)}\n\n{plots}"


def _ranked(run: Run) -> list[Who]:
    """Each server with each network in each arrangement, sorted by network and rate."""
    known = {one.who for one in run.visits if one.network in tuple(NETWORKS)}
    measured = [who for who in known if rate(run, who).values]
    return sorted(measured, key=lambda who: (NETWORKS.index(Kind(who.network)), -rate(run, who).median))


def _row(run: Run, who: Who) -> Iterator[str]:
    visits = run.of(who)
    yield f"**{who.server}**" if who.server == OURS else run.versions.get(who.server, who.server)
    yield who.network
    yield "its own" if who.server == OURS else who.arrangement
    for level in run.plan.levels:
        yield rate(run, who, level).text()
    for name in ("p50", "p95", "p99"):
        yield spread(visits, "classify", "closed", MAIN_LEVEL, lambda load, name=name: getattr(load, name)).text(0)  # type: ignore[misc]
    yield share_of_limit(run, who).text(2)
    yield spread(visits, "classify", "closed", MAIN_LEVEL, lambda load: load.server_cpu).text()
    yield f"{visits[-1].loads[-1].resident_mib:.0f}"


def _goals(run: Run) -> str:
    rows = [[name, value.text(2), goal] for name, value, goal in comparisons(run) if value.values]
    return f"### Against the peers, the limit and itself\n\n{_grid(['what', 'measured', 'goal'], rows)}" if rows else ""


def _tasks(run: Run) -> str:
    rows = []
    for who, level, models in (
        (Who(OURS, LARGE), LARGE_LEVEL, LARGE_MODELS),
        (Who(OURS, Kind.FASTEST), MAIN_LEVEL, EMBEDDED_MODELS),
    ):
        for task, model in models.items():
            loads = [load for one in run.of(who) if (load := one.load(task, "closed", level))]
            if loads:
                cells = [Spread(tuple(load.answers for load in loads)).text()]
                cells.append(Spread(tuple(load.p50 for load in loads if load.p50)).text(0))
                cells.append(Spread(tuple(load.server_cpu for load in loads)).text())
                for stage in STAGES:
                    cells.append(Spread(tuple(load.stages.get(stage, 0.0) for load in loads)).text())
                rows.append([model, task, str(level), *cells])
    if not rows:
        return ""
    text = (
        "RetinaNet on ConvMLP-S for pictures of up to 1333 x 800 and 80 classes, and Semantic FPN on ConvMLP-S for a "
        "shorter side of 512 and 150 classes, both of random weights; and the embedded models. Stages in ms, from "
        "`Server-Timing`."
    )
    heads = ["model", "task", "clients", "answers/s", "p50 ms", "CPU ms", *STAGES]
    return f"### Detection and segmentation\n\n{text}\n\n{_grid(heads, rows)}"


def _stages(run: Run) -> str:
    visits = run.of(Who(OURS, Kind.FASTEST))
    loads = [(level, [one.load("classify", "closed", level) for one in visits]) for level in run.plan.levels]
    known = [(level, [load for load in some if load and load.stages]) for level, some in loads]
    known = [(level, some) for level, some in known if some]
    if not known:
        return ""
    rows = []
    for kind, names in (("stages", known[0][1][0].stages), ("parts_cpu", known[0][1][0].parts_cpu)):
        for name in names:
            cells = [Spread(tuple(getattr(load, kind).get(name, 0.0) for load in some)).text(2) for _, some in known]
            rows.append([name if kind == "stages" else f"CPU of {name}", *cells])
    client = [Spread(tuple(load.client_cpu for load in some)).text(2) for _, some in known]
    rows.append(["CPU of the load client", *client])
    heads = ["ms", *(f"{level} clients" for level, _ in known)]
    text = "Time of a request by stage (mean, from `Server-Timing`), and CPU time an answer."
    return f"### The cost of each stage\n\n{text}\n\n{_grid(heads, rows)}"


def _noop(run: Run) -> str:
    levels = (8, MAIN_LEVEL)
    rows = []
    for who in dict.fromkeys(one.who for one in run.visits if one.network == NOOP):
        rates = [rate(run, who, level) for level in levels]
        if not all(one.values for one in rates):
            continue
        cost = spread(run.of(who), "classify", "closed", 8, lambda load: load.server_cpu)
        rows.append([who.server, str(who.processes), *(one.text(0) for one in rates), cost.text(2)])
    if not rows:
        return ""
    text = (
        "Requests a second with bodies of 100 KB, no decoding and a device that returns at once: the cost of the "
        "servers themselves. In this service a request takes the whole path: front-end process, wire, worker process. "
        "FastAPI alone answers at once from its event loop."
    )
    heads = ["server", "front-end processes", *(f"{level} clients" for level in levels), "CPU ms at 8"]
    return f"### The servers' own ceiling\n\n{text}\n\n{_grid(heads, rows)}"


def _networks(run: Run) -> str:
    if not run.limits:
        return ""
    rows = []
    for one in run.limits[0].networks:
        of_all = [limit.network(one.model, one.network) for limit in run.limits]
        rates = Spread(tuple(each.best_per_second for each in of_all)).text()
        lone = Spread(tuple(each.lone_ms for each in of_all)).text()
        rows.append([one.model, one.network, rates, one.best, lone])
    for decoding in run.limits[0].decoding:
        same = [limit.decoding_of(decoding.model) for limit in run.limits]
        rates = Spread(tuple(each.per_second for each in same)).text(0)
        rows.append([decoding.model, "decoding", rates, "", Spread(tuple(each.lone_ms for each in same)).text(2)])
    heads = ["model", "network", "images/s", "best: batches at once x images", "one alone, ms"]
    text = "On all cores, without any server; decoding is encoded bytes to network input."
    return f"### Networks and decoding alone\n\n{text}\n\n{_grid(heads, rows)}"


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=REPOSITORY / "docs")
    folder: Path = parser.parse_args().folder
    print(write_report(read_run(folder / "performance.json"), folder))


if __name__ == "__main__":
    main()
