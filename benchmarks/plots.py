"""The two plots of docs/performance.md, as SVG: this service and its tuned peers."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from benchmarks.figures import BENCH_MODEL, MAIN_LEVEL, Spread, rate, spread
from benchmarks.network import Kind
from benchmarks.results import Run
from benchmarks.servers import OURS, Who

COLOURS = {Kind.FASTEST: "#0b6e4f", Kind.FP32: "#3a7ca5", Kind.EAGER: "#8a8a8a"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")


def write_plots(run: Run, out: Path) -> None:
    # Text stays text, ids do not change from run to run, and no date: small files that differ only where figures do.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "convmlp", "font.size": 9})
    for name, draw in (("throughput", _throughput), ("latency", _latency)):
        figure, axes = plt.subplots(figsize=(7.2, 4.0), layout="constrained")
        draw(run, axes)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(out / f"{name}.svg", metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def _throughput(run: Run, axes: Axes) -> None:
    """Answers a second over clients: this service and the eager peers, with the limit."""
    lines = [(OURS, Kind.FASTEST), (OURS, Kind.FP32)]
    lines += [(name, Kind.EAGER) for name in run.plan.peers]
    for at, (server, network) in enumerate(lines):
        known = [(level, rate(run, Who(server, network), level)) for level in run.plan.levels]
        points = [(level, one.median) for level, one in known if one.values]
        if not points:
            continue
        label = f"{server}, {network}" if server == OURS else server
        wide = 2.2 if server == OURS else 1.0
        clients, rates = zip(*points, strict=True)
        axes.plot(clients, rates, MARKERS[at % len(MARKERS)] + "-", color=COLOURS[network], lw=wide, ms=5, label=label)
    for network in (Kind.FASTEST, Kind.FP32, Kind.EAGER):
        limits = Spread(tuple(one.per_second(BENCH_MODEL, network) for one in run.limits_of(BENCH_MODEL)))
        if limits.values:
            axes.axhline(limits.median, ls="--", lw=0.9, color=COLOURS[network])
            axes.annotate(f"limit, {network}", (1, limits.median), va="bottom", fontsize=8, color=COLOURS[network])
    axes.set_xscale("log", base=2)
    axes.set_xticks(run.plan.levels, [str(level) for level in run.plan.levels])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients")
    axes.set_ylabel("answers a second")
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _latency(run: Run, axes: Axes) -> None:
    """p50, p95 and p99 of each server at the main number of clients, on a log scale."""
    lines = [(OURS, Kind.FASTEST), (OURS, Kind.FP32), *((name, Kind.EAGER) for name in run.plan.peers)]
    rows = []
    for server, network in lines:
        visits = run.of(Who(server, network))
        found = [
            spread(visits, "classify", "closed", MAIN_LEVEL, lambda load, name=name: getattr(load, name))  # type: ignore[misc]
            for name in ("p50", "p95", "p99")
        ]
        if all(one.values for one in found):
            rows.append((server, network, [one.median for one in found]))
    for at, (_, network, values) in enumerate(reversed(rows)):
        axes.plot(values, [at] * 3, "-", color=COLOURS[network], lw=1.5)
        for value, marker in zip(values, ("o", "s", "D"), strict=True):
            axes.plot([value], [at], marker, color=COLOURS[network], ms=6)
    axes.set_yticks(range(len(rows)), [f"{server}, {network}" for server, network, _ in reversed(rows)])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.set_xlabel(f"latency at {MAIN_LEVEL} clients, ms: p50 (circle), p95 (square), p99 (diamond)")
    axes.grid(axis="x", which="both", lw=0.3)
