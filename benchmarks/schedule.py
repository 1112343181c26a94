"""The servers of a round, and the measurements of each."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures import LARGE_LEVEL, MAIN_LEVEL
from benchmarks.network import Kind
from benchmarks.peers.classifier import NOOP
from benchmarks.results import Run
from benchmarks.servers import EMBEDDED_MODELS, LARGE, LARGE_MODELS, OURS, Arrangement, Server, Who, ours, peer
from benchmarks.visit import Step

SUBJECTS = ("classify", "tasks", "large", "noop")
LEVELS = (1, 8, 32, 128)
SHARES = (0.5, 0.8, 1.2)
FINALISTS = 2
"""Of the peers with each network in each arrangement, by the first round."""
ADVISED_NETWORKS = (Kind.FASTEST, Kind.EAGER)
"""The networks with which peers are measured as advised, too."""
MAIN = Who(OURS, Kind.FASTEST)
LARGE_MAIN = Who(OURS, LARGE)
LARGE_S = {"detect": 9.0, "segment": 6.0}
"""Enough for some tens of answers on two cores."""
LONGER = 2.0
"""Factor on a plan's seconds: percentiles of a lone client and of open loops need many requests, tasks many batches."""
NOOP_PEERS = ("fastapi", "litserve", "mosec")
NOOP_PROCESSES = (1, 2)


def servers_of(run: Run, number: int) -> Iterator[Server]:
    """The servers of a round."""
    plan = run.plan
    if "classify" in plan.subjects:
        for network in plan.networks:
            if network != Kind.EAGER:
                yield ours(network)
            for arrangement in plan.arrangements:
                if arrangement is Arrangement.TUNED or network in ADVISED_NETWORKS:
                    for name in plan.peers if number == 0 else finalists(run, network, arrangement):
                        yield peer(Who(name, network, arrangement=arrangement))
    elif "tasks" in plan.subjects:
        yield ours(Kind.FASTEST)
    if "large" in plan.subjects:
        yield ours(LARGE)
    if "noop" in plan.subjects:
        for processes in NOOP_PROCESSES:
            yield ours(NOOP, processes)
        for name in NOOP_PEERS:
            for processes in NOOP_PROCESSES if name == "fastapi" else (1,):
                yield peer(Who(name, NOOP, processes))


def finalists(run: Run, network: str, arrangement: Arrangement) -> list[str]:
    """The best peers with a network in an arrangement, by the first round, the best one first."""
    rates = {}
    for one in run.visits:
        load = one.load("classify", "closed", MAIN_LEVEL)
        if one.server != OURS and load and (one.round, one.network, one.arrangement) == (0, network, arrangement):
            rates[one.server] = load.answers
    return sorted(rates, key=lambda name: -rates[name])[:FINALISTS]


def steps_of(run: Run, server: Server, number: int) -> Iterator[Step]:
    """The measurements of a server in a round."""
    plan, who = run.plan, server.who
    if who.network == NOOP:
        for clients in (8, MAIN_LEVEL):
            yield Step("classify", "closed", clients, min(plan.seconds, 2.5))
        return
    if who == LARGE_MAIN:
        for task in LARGE_MODELS:
            yield Step(task, "closed", LARGE_LEVEL, LARGE_S[task])
        return
    main, tuned = who == MAIN, who.arrangement is Arrangement.TUNED
    if "classify" in plan.subjects:
        whole = who.server == OURS or (who.network == Kind.EAGER and tuned)
        for clients in plan.levels if whole else [MAIN_LEVEL]:
            times = LONGER if main and clients == 1 else 1.0
            yield Step("classify", "closed", clients, times * plan.seconds)
        rivals = [Who(name, Kind.EAGER) for name in finalists(run, Kind.EAGER, Arrangement.TUNED)[:1]]
        if main or (number > 0 and who in rivals):
            for share in plan.shares:
                yield Step("classify", "open", share, LONGER * plan.seconds)
    if main and "tasks" in plan.subjects:
        for task in EMBEDDED_MODELS:
            yield Step(task, "closed", MAIN_LEVEL, LONGER * plan.seconds)
