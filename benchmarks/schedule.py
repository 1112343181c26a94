"""Who takes part in a round, and what is measured of each."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures import MAIN_LEVEL
from benchmarks.network import Kind
from benchmarks.peers.classifier import NOOP
from benchmarks.results import Run
from benchmarks.servers import OURS, Server, ours, peer
from benchmarks.visit import Step

SUBJECTS = ("classify", "tasks", "noop")
LEVELS = (1, 8, 32, 128)
SHARES = (0.5, 0.8, 1.2)
FINALISTS = 2
"""Of the peers with each network, by the first round."""
NOOP_PEERS = ("fastapi", "litserve", "mosec")
NOOP_PROCESSES = (1, 2)


def servers_of(run: Run, number: int) -> Iterator[Server]:
    """Who takes part in a round."""
    plan = run.plan
    if "classify" in plan.subjects:
        for network in plan.networks:
            if network != Kind.EAGER:
                yield ours(network)
            for name in plan.peers if number == 0 else finalists(run, network):
                yield peer(name, network)
    elif "tasks" in plan.subjects:
        yield ours(Kind.FASTEST)
    if "noop" in plan.subjects:
        for processes in NOOP_PROCESSES:
            yield ours(NOOP, processes)
        for name in NOOP_PEERS:
            for processes in NOOP_PROCESSES if name == "fastapi" else (1,):
                yield peer(name, NOOP, processes)


def finalists(run: Run, network: str) -> list[str]:
    """The best peers with a network, by the first round, the best one first."""
    rates = {}
    for one in run.visits:
        load = one.load("classify", "closed", MAIN_LEVEL)
        if one.round == 0 and one.network == network and one.server != OURS and load is not None:
            rates[one.server] = load.answers
    return sorted(rates, key=lambda name: -rates[name])[:FINALISTS]


def steps_of(run: Run, server: Server, number: int) -> Iterator[Step]:
    """What is measured of a server in a round."""
    plan = run.plan
    if server.network == NOOP:
        for clients in (8, MAIN_LEVEL):
            yield Step("classify", "closed", clients, min(plan.seconds, 2.5))
        return
    main = server.name == OURS and server.network == Kind.FASTEST
    if "classify" in plan.subjects:
        whole = server.name == OURS or server.network == Kind.EAGER
        for clients in plan.levels if whole else [MAIN_LEVEL]:
            yield Step("classify", "closed", clients, plan.seconds)
        rival = number > 0 and server.network == Kind.EAGER and server.name == finalists(run, Kind.EAGER)[0]
        if main or rival:
            for share in plan.shares:
                yield Step("classify", "open", share, 1.5 * plan.seconds)
    if main and "tasks" in plan.subjects:
        for task in ("detect", "segment"):
            yield Step(task, "closed", MAIN_LEVEL, plan.seconds)
